"""Choosing by importance per cost: budgets are kept, and next to nothing better would have fitted."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cook.prune.structure.choice import spare, within

ENTRY = st.integers(1, 7).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(0, 5), min_size=count, max_size=count),
        st.lists(st.integers(0, 4), min_size=count, max_size=count),
        st.sampled_from([1, 1, 2, 3]),
    )
)


def made(entries: Any) -> tuple[list[Tensor], list[Tensor], list[int]]:
    scores = [torch.tensor(each, dtype=torch.float64) for each, _, _ in entries]
    curves = [torch.tensor([0, *steps], dtype=torch.float64).cumsum(0) for _, steps, _ in entries]
    return scores, curves, [multiple for _, _, multiple in entries]


def spent(keep: list[Tensor], curves: list[Tensor]) -> float:
    return sum(float(curve[int(stays.sum())]) for stays, curve in zip(keep, curves, strict=True))


@settings(deadline=None, max_examples=300)
@given(st.lists(ENTRY, min_size=1, max_size=5), st.floats(0, 1), st.integers(1, 3))
def test_the_budget_is_kept_and_filled(entries, share, minimum):
    scores, curves, multiples = made(entries)
    budget = share * sum(float(curve[-1]) for curve in curves)
    keep = within(scores, curves, budget, minimum=minimum, multiples=multiples)
    least = [
        len(each) - spare(len(each), minimum, multiple=multiple)
        for each, multiple in zip(scores, multiples, strict=True)
    ]
    lowest = sum(float(curve[count]) for curve, count in zip(curves, least, strict=True))
    assert spent(keep, curves) <= max(budget, lowest) + 1e-9
    for stays, each, multiple, some in zip(keep, scores, multiples, least, strict=True):
        count = int(stays.sum())
        assert count >= some
        assert count == len(each) or count % multiple == 0
        if 0 < count < len(each):
            assert float(each[stays].min()) >= float(each[~stays].max())  # the best of an entry stay
    left = [int(stays.sum()) for stays in keep]
    for number, (each, curve, multiple) in enumerate(zip(scores, curves, multiples, strict=True)):
        if left[number] < len(each):
            more = min(len(each), left[number] + multiple)
            assert spent(keep, curves) + float(curve[more] - curve[left[number]]) > budget


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=3), st.floats(0, 1))
def test_equal_costs_are_spent_as_well_as_can_be(layers, share):
    scores = [torch.tensor(each, dtype=torch.float64) for each in layers]
    curves = [torch.arange(len(each) + 1, dtype=torch.float64) for each in layers]
    budget = share * sum(map(len, layers))
    keep = within(scores, curves, budget, multiples=[1] * len(layers))
    found = sum(float(each[stays].sum()) for each, stays in zip(scores, keep, strict=True))
    best = -1.0
    for counts in itertools.product(*(range(1, len(each) + 1) for each in layers)):
        if sum(counts) <= budget:
            tops = (
                sum(sorted(each, reverse=True)[:count]) for each, count in zip(layers, counts, strict=True)
            )
            best = max(best, sum(tops))
    if best >= 0:
        assert found == best


def test_what_is_gone_stays_gone():
    scores = [torch.tensor([-torch.inf, 5.0, 6.0]), torch.tensor([1.0, 2.0, 3.0])]
    curves = [torch.arange(4.0), torch.arange(4.0)]
    keep = within(scores, curves, 6.0, multiples=[1, 1])
    assert keep[0].tolist() == [False, True, True]
    assert bool(keep[1].all())


def test_a_unit_that_saves_no_time_by_itself_goes_with_the_next():
    # The first entry is as slow with three units as with four; two of them are worth less than one other.
    scores = [torch.tensor([0.1, 0.1, 9.0, 9.0]), torch.tensor([1.0, 9.0])]
    curves = [torch.tensor([0.0, 1.0, 2.0, 4.0, 4.0]), torch.tensor([0.0, 2.0, 4.0])]
    keep = within(scores, curves, 6.0, multiples=[1, 1])
    assert [stays.tolist() for stays in keep] == [[False, False, True, True], [True, True]]


@pytest.mark.parametrize("budget", [0.0, -1.0])
def test_all_that_can_go_goes_when_nothing_suffices(budget):
    keep = within([torch.tensor([1.0, 2.0])], [torch.arange(3.0)], budget, multiples=[1])
    assert keep[0].tolist() == [False, True]
