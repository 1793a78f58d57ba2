"""Moments: their three forms, their steps, and what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cook.errors import CookError
from cook.recipe import SchedulePoint


@pytest.mark.parametrize(
    ("value", "step"),
    [
        (0, 0),
        (500, 500),
        ("500", 500),
        (" 500 ", 500),
        (500.0, 500),
        ("1 epoch", 200),
        ("1.5 epochs", 300),
        ("30%", 300),
        ("30 %", 300),
        ("0.05%", 1),
        ("100%", 1000),
        ("5 epochs", 1000),
    ],
)
def test_steps(value, step):
    assert SchedulePoint.parse(value).step(1000, 200) == step


@pytest.mark.parametrize(
    "value",
    ["", "abc", "-1", -1, "101%", "1.5", 1.5, "1e3", "1 day", "%", None, True, [], {}, "٣", "9" * 99, 1e300],
)
def test_no_schedule_point(value):
    with pytest.raises(CookError) as caught:
        SchedulePoint.parse(value)
    assert caught.value.hint


@pytest.mark.parametrize("value", [1001, "5.5 epochs"])
def test_past_the_end(value):
    with pytest.raises(CookError, match="has 1000 steps"):
        SchedulePoint.parse(value).step(1000, 200)


@given(st.integers(0, 10**6), st.integers(1, 1000), st.floats(0, 100))
def test_shares_stay_in_the_run_and_text_reads_back(total, per_epoch, share):
    point = SchedulePoint.parse(f"{share:.3f}%")
    assert 0 <= point.step(total, per_epoch) <= total
    assert SchedulePoint.parse(str(point)).step(total, per_epoch) == point.step(total, per_epoch)


@given(st.text() | st.integers() | st.floats() | st.none())
def test_any_value_is_a_schedule_point_or_an_error(value):
    try:
        point = SchedulePoint.parse(value)
    except CookError:
        return
    assert point.amount >= 0
