"""Ranks against counting, and against trying everything."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cook.lowrank.ranks import even, for_energy, least_cost, least_share, spread, worthwhile

sizes = st.lists(st.tuples(st.integers(2, 12), st.integers(2, 12)), min_size=1, max_size=3)


@given(st.integers(1, 60), st.integers(1, 60))
def test_worthwhile_is_the_last_rank_that_saves_something(out, columns):
    rank = worthwhile(out, columns)
    assert rank * (out + columns) < out * columns <= (rank + 1) * (out + columns)


@given(sizes, st.floats(0.05, 0.99), st.sampled_from([1, 2]))
def test_even_ranks_are_the_largest_within_their_share(several, share, multiple):
    if share < least_share(several, multiple):
        with pytest.raises(ValueError, match="rank of zero"):
            even(several, share, multiple)
        return
    for (out, columns), rank in zip(several, even(several, share, multiple), strict=True):
        assert rank % multiple == 0
        assert 0 < rank * (out + columns) <= share * out * columns * (1 + 1e-6)
        assert (rank + multiple) * (out + columns) > share * out * columns * (1 - 1e-6)


def test_energy_is_the_smallest_rank_that_keeps_it():
    worth = torch.tensor([5.0, 3, 1, 1])
    assert [for_energy(worth, energy) for energy in (0.1, 0.5, 0.51, 0.8, 0.9, 0.95)] == [1, 1, 2, 2, 3, 4]
    assert for_energy(worth, 0.51, 8) == 8
    assert for_energy(worth, 0.8, 2) == 2


def loss_of(worth: torch.Tensor, rank: int | None) -> float:
    return 0.0 if rank is None else float(worth[rank:].double().sum())


def cost_of(size: tuple[int, int], rank: int | None) -> int:
    return size[0] * size[1] if rank is None else rank * sum(size)


def longest_step(worth: torch.Tensor, size: tuple[int, int], ranks: list[int | None]) -> float:
    """The most that one step gains along the lower convex hull of loss over cost."""
    points = sorted((cost_of(size, rank), loss_of(worth, rank)) for rank in ranks)
    corners = [
        (x, y)
        for x, y in points
        if not any(
            left < x < right and low + (high - low) * (x - left) / (right - left) < y - 1e-12
            for (left, low), (right, high) in itertools.combinations(points, 2)
        )
    ]
    return max((before[1] - after[1] for before, after in itertools.pairwise(corners)), default=0.0)


@given(sizes, st.integers(0, 1000), st.floats(0.1, 1.1), st.sampled_from([1, 2]))
def test_spread_keeps_to_the_budget_and_is_nearly_the_best(several, seed, share, multiple):
    generator = torch.Generator().manual_seed(seed)
    worths = [torch.rand(min(size), generator=generator).sort(descending=True).values for size in several]
    costs = [float(out * columns) for out, columns in several]
    budget = share * sum(costs)
    if least_cost(several, costs, multiple) > budget:
        with pytest.raises(ValueError, match="least that these cost"):
            spread(worths, several, costs, budget, multiple)
        return
    found = spread(worths, several, costs, budget, multiple)
    together = list(zip(several, worths, found, strict=True))
    assert sum(cost_of(size, rank) for size, _, rank in together) <= budget * (1 + 1e-9)
    assert all(
        rank is None or (rank % multiple == 0 and rank <= worthwhile(*size)) for size, _, rank in together
    )
    lost = sum(loss_of(worth, rank) for _, worth, rank in together)
    every = [[None, *range(multiple, worthwhile(*size) + 1, multiple)] for size in several]
    best = min(
        sum(map(loss_of, worths, ranks))
        for ranks in itertools.product(*every)
        if sum(map(cost_of, several, ranks)) <= budget
    )
    # Until the first step that does not fit, the hull is followed, and nothing is better for its cost.
    missed = max(map(longest_step, worths, several, every))
    assert best - 1e-9 <= lost <= best + missed + 1e-9


def test_spread_gives_where_it_is_worth_most():
    steep, flat = torch.tensor([9.0] + [0.1] * 9), torch.ones(10)
    found = spread([steep, flat], [(10, 10)] * 2, [100.0] * 2, 100)
    assert found[0] == 1
    assert found[1] == 4
    everything = spread([steep, flat], [(10, 10)] * 2, [100.0] * 2, 200)
    assert everything == [None, None]
    dear = spread([flat, flat], [(10, 10)] * 2, [1000.0, 100.0], 400)
    assert (dear[0] or 0) < (dear[1] or 10)


def test_matrices_that_are_too_small_stay_whole():
    assert worthwhile(1, 9) == 0
    assert spread([torch.ones(1)], [(1, 9)], [9.0], 9) == [None]
    with pytest.raises(ValueError, match="least"):
        spread([torch.ones(1)], [(1, 9)], [9.0], 8)
