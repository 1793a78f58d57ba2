"""How sparsity grows: end points, order, and the formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cook.prune.weights.schedule import sparsity_at

NAMES = ("constant", "linear", "cubic")
SHARES = st.floats(0, 1)


@pytest.mark.parametrize("name", NAMES)
@given(final=SHARES, initial=SHARES)
def test_it_ends_exactly_at_the_final_sparsity(name, final, initial):
    assert sparsity_at(1.0, final, name, initial) == final
    assert sparsity_at(2.0, final, name, initial) == final


@given(final=SHARES, initial=SHARES)
def test_it_begins_at_the_initial_one(final, initial):
    assert sparsity_at(0.0, final, "constant", initial) == final
    for name in ("linear", "cubic"):
        assert sparsity_at(0.0, final, name, initial) == pytest.approx(initial)


@pytest.mark.parametrize("name", NAMES)
@given(final=SHARES, one=SHARES, other=SHARES)
def test_it_never_falls_and_stays_within(name, final, one, other):
    low, high = sorted((one, other))
    assert 0 <= sparsity_at(low, final, name) <= sparsity_at(high, final, name) + 1e-12
    assert sparsity_at(high, final, name) <= final


@given(progress=SHARES, final=SHARES)
def test_cubic_is_ahead_of_linear(progress, final):
    assert sparsity_at(progress, final, "cubic") >= sparsity_at(progress, final, "linear") - 1e-12


def test_values():
    assert sparsity_at(0.5, 0.8) == pytest.approx(0.8 * (1 - 0.5**3))
    assert sparsity_at(0.25, 0.8, "linear", 0.4) == pytest.approx(0.5)
    assert sparsity_at(0.5, 0.9, "cubic", 0.1) == pytest.approx(0.9 - 0.8 / 8)
    with pytest.raises(ValueError, match="no schedule 'step'"):
        sparsity_at(0.5, 0.8, "step")
