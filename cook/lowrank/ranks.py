"""Which rank each matrix gets: even shares, kept energy, or one budget that all directions compete for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def worthwhile(out: int, in_: int) -> int:
    """The largest rank whose two factors have fewer numbers than the matrix: below `out in / (out + in)`.

    >>> worthwhile(16, 16)
    7
    """
    return (out * in_ - 1) // (out + in_)


def even(sizes: Sequence[tuple[int, int]], share: float, multiple: int = 1) -> list[int]:
    """The rank of each matrix whose factors have at most a share of its numbers.

    Args:
        sizes: (out, in) of each.
        share: between 0 and 1.
        multiple: of what each rank is one.

    Raises:
        ValueError: some rank would be zero: the share is below `least_share`.
    """
    ranks = [int(share * out * in_ / (out + in_) + 1e-9) // multiple * multiple for out, in_ in sizes]
    if not all(ranks):
        raise ValueError(f"a share of {share:g} leaves some matrix a rank of zero")
    return ranks


def least_share(sizes: Sequence[tuple[int, int]], multiple: int = 1) -> float:
    """The smallest share with which `even` gives every matrix a rank."""
    return max(multiple * (out + in_) / (out * in_) for out, in_ in sizes)


def least_cost(sizes: Sequence[tuple[int, int]], costs: Sequence[float], multiple: int = 1) -> float:
    """The least that `spread` can come to: the first rank for each, or what is too small for one whole."""
    return sum(
        cost * min(1.0, multiple * (out + in_) / (out * in_))
        for (out, in_), cost in zip(sizes, costs, strict=True)
    )


def for_energy(worth: Tensor, energy: float, multiple: int = 1) -> int:
    """The smallest rank that keeps a share of all worth.

    Args:
        worth: [k], of the directions, the largest first.
        energy: between 0 and 1.
        multiple: of what it is one.
    """
    kept = worth.double().cumsum(0)
    enough = torch.searchsorted(kept, energy * kept[-1] * (1 - 1e-12))
    return -(-(int(enough) + 1) // multiple) * multiple


def spread(
    worths: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    costs: Sequence[float],
    budget: float,
    multiple: int = 1,
) -> list[int | None]:
    """Ranks for one budget: directions go by their worth per cost, those of each matrix in their order.

    Args:
        worths: [k] of each matrix, in the order in which a rank takes them; all in one unit.
        sizes: (out, in) of each.
        costs: what each whole matrix costs; its factors cost that by the numbers that they have.
        budget: what all of them may cost together at most.
        multiple: of what each rank is one.

    Returns:
        The ranks; None for a matrix that is better left whole than given more than a worthwhile rank.

    Raises:
        ValueError: no ranks cost so little: the budget is below `least_cost`.
    """
    choices = [
        _choices(worth, size, cost, multiple) for worth, size, cost in zip(worths, sizes, costs, strict=True)
    ]
    at = [0] * len(choices)
    spent = sum(each[0][1] for each in choices)
    if spent > budget * (1 + 1e-12):
        raise ValueError(f"the least that these cost is {spent:g}, more than {budget:g}")
    steps = [(slope, number, end) for number, each in enumerate(choices) for slope, end in _hull(each)]
    stuck: set[int] = set()
    for _, number, end in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        if number in stuck:
            continue
        each = choices[number]
        room = budget - spent + each[at[number]][1]
        reached = max(
            place for place in range(at[number], end + 1) if place == at[number] or each[place][1] <= room
        )
        spent += each[reached][1] - each[at[number]][1]
        at[number] = reached
        if reached < end:
            stuck.add(number)
    return [each[place][0] for each, place in zip(choices, at, strict=True)]


def _choices(
    worth: Tensor, size: tuple[int, int], cost: float, multiple: int
) -> list[tuple[int | None, float, float]]:
    """(rank, cost, worth that is lost) of all that a matrix can be, the cheapest first."""
    out, in_ = size
    lost = worth.double().flip(0).cumsum(0).flip(0) - worth.double()
    one = cost * (out + in_) / (out * in_)
    ranks = range(multiple, worthwhile(out, in_) + 1, multiple)
    return [*((rank, rank * one, float(lost[rank - 1])) for rank in ranks), (None, cost, 0.0)]


def _hull(choices: Sequence[tuple[int | None, float, float]]) -> list[tuple[float, int]]:
    """The steps along the lower convex hull of loss over cost: (gain per cost, the choice it leads to)."""
    corners: list[int] = []
    for place in range(len(choices)):
        while len(corners) > 1 and _gain(choices, corners[-2], corners[-1]) <= _gain(
            choices, corners[-1], place
        ):
            corners.pop()
        corners.append(place)
    return [(_gain(choices, first, last), last) for first, last in pairwise(corners)]


def _gain(choices: Sequence[tuple[int | None, float, float]], first: int, last: int) -> float:
    return (choices[first][2] - choices[last][2]) / (choices[last][1] - choices[first][1])
