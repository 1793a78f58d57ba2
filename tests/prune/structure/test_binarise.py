"""What stays when gates become final: never more than the goal pays for, and all that it still pays for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.prune.structure.binarise import ROUNDING, binarise, least
from cook.prune.structure.shares import Shares


@st.composite
def models(draw):
    """Up to four layers in one or two stacks, gated or not, each with two lots of units, and a goal."""
    count = draw(st.integers(1, 4))
    gated = draw(st.booleans())
    curves, homes, units = [], [], []
    for layer in range(count):
        for _ in range(2):
            steps = draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
            curves.append(torch.tensor([0, *steps], dtype=torch.float64).cumsum(0))
            homes.append(layer if gated else None)
            scores = draw(st.lists(st.integers(-4, 4), min_size=len(steps), max_size=len(steps)))
            units.append(torch.tensor(scores).double() if draw(st.integers(0, 3)) else None)
    layers = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)) if gated else []
    rest = draw(st.integers(1, 20))
    whole = rest + sum(layers) + sum(float(curve[-1]) for curve in curves)
    shares = Shares([c / whole for c in curves], homes, [own / whole for own in layers], rest / whole)
    scores = draw(st.lists(st.integers(-4, 4), min_size=len(layers), max_size=len(layers)))
    stacks = [int(layer >= draw(st.integers(1, 4))) for layer in range(len(layers))]
    return shares, [float(each) for each in scores], units, stacks, draw(st.integers(1, 3))


@settings(max_examples=300, deadline=None)
@given(models(), st.floats(0, 1))
def test_the_goal_is_kept_and_filled_up(model, between):
    shares, scores, units, stacks, minimum = model
    options = {"minimum": minimum, "stacks": stacks}
    nearest = least(shares, [each is not None for each in units], **options)
    goal = nearest + between * (1 - nearest)
    layers, keep, _ = binarise(shares, scores, units, goal, **options)
    counts = [int(each.sum()) for each in keep]
    cost = shares.of(layers, counts)
    assert cost <= goal + 2 * ROUNDING
    for stack in set(stacks):
        assert any(stays for stays, own in zip(layers, stacks, strict=True) if own == stack)
    for number, stays in enumerate(layers):
        if not stays:  # not even the least of it would fit
            mine = [entry for entry, home in enumerate(shares.homes) if home == number]
            few = [
                min(minimum, counts[entry]) if units[entry] is not None else counts[entry] for entry in mine
            ]
            least_of_it = sum(float(shares.curves[e][n]) for e, n in zip(mine, few, strict=True))
            assert cost + shares.layers[number] + least_of_it > goal + ROUNDING / 2
    for entry, (curve, home, own, stays) in enumerate(
        zip(shares.curves, shares.homes, units, keep, strict=True)
    ):
        here = home is None or layers[home]
        if own is None or not here:
            assert stays.all()
            continue
        assert counts[entry] >= min(minimum, len(stays))
        if counts[entry] < len(stays):
            # One more would be too much, and those that go are less open than those that stay.
            assert cost + float(curve[counts[entry] + 1] - curve[counts[entry]]) > goal + ROUNDING / 2
            assert float(own[stays].min()) >= float(own[~stays].max())


def test_the_most_open_ones_stay():
    line = torch.arange(4, dtype=torch.float64) / 10
    shares = Shares([line, line, line], [0, 1, 2], [0.0, 0.0, 0.0], 0.1)
    units = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, -1.0, 5.0]), torch.tensor([9.0, 9.0, 9.0])]
    layers, keep, _ = binarise(shares, [1.0, 2.0, -3.0], units, 0.6)
    assert layers == [True, True, False]
    assert [each.tolist() for each in keep[:2]] == [[True, True, True], [True, False, True]]
    layers, keep, _ = binarise(shares, [-1.0, -2.0, 3.0], units, 0.65)
    assert layers == [True, False, True]
    assert [each.tolist() for each in keep[::2]] == [[False, True, True], [True, True, True]]


def test_what_does_not_fit_leaves_room_for_smaller_ones():
    dear, cheap = (step * torch.arange(3, dtype=torch.float64) for step in (0.3, 0.05))
    shares = Shares([dear, cheap], [None, None], [], 0.3)
    units = [torch.tensor([3.0, 2.0]), torch.tensor([1.0, 0.0])]
    _, keep, _ = binarise(shares, [], units, 0.8)
    assert [each.tolist() for each in keep] == [[True, False], [True, True]]


def test_less_than_the_least_is_refused():
    line = torch.arange(3, dtype=torch.float64) / 10
    shares = Shares([line, line], [0, 1], [0.1, 0.2], 0.3)
    units = [torch.zeros(2), torch.zeros(2)]
    assert least(shares, [True, True]) == pytest.approx(0.5)
    assert least(shares, [True, True], stacks=[0, 1]) == pytest.approx(0.8)
    assert least(shares, [False, True]) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="at least"):
        binarise(shares, [0.0, 1.0], units, 0.49)
    # The most open layer would be too much, so the cheapest one stays.
    assert binarise(shares, [0.0, 1.0], units, 0.55)[0] == [True, False]
