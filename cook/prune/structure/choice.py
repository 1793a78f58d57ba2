"""Which heads or neurons go: the least important ones, within what each layer can spare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def spare(count: int, minimum: int = 1, limit: float = 1.0, multiple: int = 1) -> int:
    """How many of `count` units a layer can lose.

    Args:
        minimum: units that stay at least.
        limit: the largest share that goes.
        multiple: those that stay are a multiple of it, unless all stay.
    """
    stay = max(minimum, count - int(limit * count + 1e-9), 1)
    stay = -(-stay // multiple) * multiple
    return max(0, count - stay)


def least(
    scores: Sequence[Tensor],
    share: float,
    *,
    scope: str = "global",
    minimum: int = 1,
    limit: float = 1.0,
    multiple: int = 1,
) -> list[Tensor]:
    """Which units stay when the share of the least important goes.

    Units leave a layer in blocks: the least important ones that make the rest a multiple, then `multiple`
    at a time. A block is as important as its mean, and blocks go until as near as possible to `share` of all
    units is gone. With `multiple` 1 exactly `round(share * units)` go, or as many as the layers can spare.

    Args:
        scores: of each layer's units; equal ones go in order, and those at minus infinity go in any case.
        scope: `global`, over all layers together, or `layer`, in each by itself.
        minimum, limit, multiple: of each layer, as in `spare`.

    Returns:
        A bool mask for each layer, True where a unit stays.
    """
    if scope == "layer":
        options = {"minimum": minimum, "limit": limit, "multiple": multiple}
        return [least([each], share, **options)[0] for each in scores]  # type: ignore[arg-type]
    if scope != "global":
        raise ValueError(f"no scope {scope!r}; there are global and layer")
    blocks = [
        (float(each[units].double().mean()), layer, position, units)
        for layer, each in enumerate(scores)
        for position, units in enumerate(_blocks(each, minimum, limit, multiple))
    ]
    target = round(share * sum(len(each) for each in scores))
    keep = [torch.ones(len(each), dtype=torch.bool) for each in scores]
    gone = 0
    for score, layer, _, units in sorted(blocks, key=lambda block: block[:3]):
        if score > -torch.inf and 2 * (target - gone) < len(units):
            break
        keep[layer][units.cpu()] = False
        gone += len(units)
    return keep


def within(
    scores: Sequence[Tensor],
    curves: Sequence[Tensor],
    budget: float,
    *,
    minimum: int = 1,
    limit: float = 1.0,
    multiples: Sequence[int],
) -> list[Tensor]:
    """Which units stay so that what they cost is at most a budget: the most important ones for their cost.

    Blocks as in `least` go in the order of their importance per cost until the budget is met, and those
    that still fit come back. Where the next block of a layer is cheaper to lose than the one before it, the
    two go together: a block that saves no time by itself must not stand in the way of one that does.

    Args:
        scores: of each entry's units, comparable over all of them; those at minus infinity go in any case.
        curves: what 0, 1, ... units of each entry cost, float64 [count + 1], never falling.
        budget: what all of them together may cost.
        minimum, limit, multiples: as in `spare`, the last one for each entry.

    Returns:
        A bool mask for each entry, True where a unit stays. If all that can go is not enough, all of it goes.
    """
    pools: list[_Pool] = []
    for number, (each, curve, multiple) in enumerate(zip(scores, curves, multiples, strict=True)):
        pools += _pooled(number, each, curve, list(_blocks(each, minimum, limit, multiple)))
    keep = [torch.ones(len(each), dtype=torch.bool) for each in scores]
    spent = sum(float(curve[-1]) for curve in curves)
    went: list[tuple[int, Tensor]] = []
    for pool in sorted(pools, key=lambda pool: pool.ratio):
        if spent <= budget and pool.ratio > -torch.inf:
            break
        for units in pool.blocks:
            keep[pool.entry][units] = False
            went.append((pool.entry, units))
        spent -= pool.saved
    return _filled(keep, went, scores, curves, budget)


@dataclass
class _Pool:
    """Blocks of one entry that go together, the importance that is lost, and the cost that is saved."""

    entry: int
    blocks: list[Tensor]
    lost: float
    saved: float

    @property
    def ratio(self) -> float:
        if self.lost == -torch.inf:
            return -torch.inf
        return self.lost / self.saved if self.saved > 0 else torch.inf


def _pooled(entry: int, scores: Tensor, curve: Tensor, blocks: Sequence[Tensor]) -> list[_Pool]:
    pools: list[_Pool] = []
    left = len(scores)
    for units in blocks:
        saved = float(curve[left] - curve[left - len(units)])
        left -= len(units)
        pools.append(_Pool(entry, [units], float(scores[units].double().sum()), saved))
        while len(pools) > 1 and pools[-1].ratio < pools[-2].ratio:
            last = pools.pop()
            before = pools.pop()
            joined = [*before.blocks, *last.blocks]
            pools.append(_Pool(entry, joined, before.lost + last.lost, before.saved + last.saved))
    return pools


def _filled(
    keep: list[Tensor],
    went: Sequence[tuple[int, Tensor]],
    scores: Sequence[Tensor],
    curves: Sequence[Tensor],
    budget: float,
) -> list[Tensor]:
    """Blocks that went come back, the last ones first, where the budget allows it.

    Args:
        went: the entry of each, and its units.
    """
    left = [int(each.sum()) for each in keep]
    spent = sum(float(curve[count]) for curve, count in zip(curves, left, strict=True))
    stuck: set[int] = set()
    for entry, units in reversed(went):
        count = left[entry] + len(units)
        more = float(curves[entry][count] - curves[entry][left[entry]])
        gone = bool((scores[entry][units] == -torch.inf).any())
        if entry in stuck or gone or spent + more > budget:
            stuck.add(entry)  # a less important block does not come back in the place of a better one
            continue
        keep[entry][units] = True
        left[entry], spent = count, spent + more
    return keep


def _blocks(scores: Tensor, minimum: int, limit: float, multiple: int) -> Iterator[Tensor]:
    """The units of a layer that can go, the least important ones first, as many at a time as go together."""
    order = torch.argsort(scores, stable=True)
    first, count = len(scores) % multiple or multiple, len(scores)
    begin = 0
    for end in range(first, spare(count, minimum, limit, multiple) + 1, multiple):
        yield order[begin:end]
        begin = end
