"""Numbers as people read them."""

from __future__ import annotations

import pytest

from cook.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (11_312_000, "11.3 M"),
        (9_994_999, "9.99 M"),
        (9_995_001, "10.0 M"),
        (7_240_000_000, "7.24 G"),
        (-1500, "-1.50 k"),
        (10**21, "1000000 P"),
        (None, "-"),
    ],
)
def test_count(value: int | None, text: str) -> None:
    assert units.count(value) == text


def test_size_percent_and_time() -> None:
    assert units.size(45_200_000) == "45.2 MB"
    assert units.size(512) == "512 B"
    assert units.percent(0.891) == "89.1 %"
    assert units.milliseconds(3.214) == "3.21 ms"
    assert units.milliseconds(1234.5) == "1234 ms"
    assert units.milliseconds(None) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.2, "42 s"), (59.7, "1 min 00 s"), (7500, "2 h 05 min"), (None, "-")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert units.duration(seconds) == text


def test_a_pair_names_a_shared_unit_once() -> None:
    assert units.size_pair(45_200_000, 12_100_000) == "45.2 → 12.1 MB"
    assert units.size_pair(1_200_000_000, 905_000_000) == "1.20 GB → 905 MB"
    assert units.percent_pair(0.0, 0.601) == "0.0 → 60.1 %"
    assert units.size_pair(None, 12_100_000) == "- → 12.1 MB"


def test_metrics_show_the_sign_of_the_change() -> None:
    assert units.metric_pair("accuracy", 0.964, 0.952) == "96.40 → 95.20 % (-1.20)"
    assert units.metric_pair("f1_macro", 0.5, 0.75) == "50.00 → 75.00 % (+25.00)"
    assert units.metric_pair("loss", 0.5, 0.25) == "0.5 → 0.25 (-0.25)"
    assert units.metric_pair("accuracy", 0.9, 0.9) == "90.00 → 90.00 % (0)"
    assert units.metric_pair("accuracy", 0.9, 0.899999) == "90.00 → 90.00 % (0)"
    assert units.metric_pair("accuracy", None, 0.9) == "- → 90.00 %"
    assert units.metric_pair("accuracy", None, None) == "-"


def test_times_says_the_direction_in_words() -> None:
    assert units.times(45.2, 12.1, "smaller", "larger") == "3.74x smaller"
    assert units.times(1.0, 1.13, "faster", "slower") == "1.13x slower"
    assert units.times(1.0, 1.004, "faster", "slower") == "same"
    assert units.times(100, 4, "smaller", "larger") == "25.0x smaller"
    assert units.times(0, 4, "smaller", "larger") == ""
    assert units.times(None, 4, "smaller", "larger") == ""
