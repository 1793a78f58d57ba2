"""Which gates stay open when they become final: the most open ones that a goal pays for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cook.prune.structure.shares import Shares

ROUNDING = 1e-9
"""Sums of shares may differ by so much in the order of adding."""
STEP = 8
"""Kernels like widths that are a multiple of it: a width that is one stays one."""
LAYER, STREAM = -1, -2
"""Stand for gates of layers and of the residual stream where others are of an attention or FFN."""


def binarise(
    shares: Shares,
    layers: Sequence[float],
    units: Sequence[Tensor | None],
    goal: float,
    *,
    minimum: int = 1,
    stacks: Sequence[int] | None = None,
    stream: Tensor | None = None,
) -> tuple[list[bool], list[Tensor], Tensor | None]:
    """What stays: by one threshold on how open the gates are, filled up with those below it that still fit.

    All gates are gone through from the most open one on, and each stays if the goal pays for it. A layer
    comes with as few units as it may have, then come those that are more open than itself. Dimensions of the
    residual stream come `STEP` at a time where its width is a multiple of that, by how open they are on
    average.

    Args:
        layers: how open the gate of each gated layer is.
        units: for each attention and FFN how open its gates are, [count]; None where it has none.
        goal: the share of the cost that may be left.
        minimum: units that stay in each attention and FFN of a layer that stays.
        stacks: of each gated layer, which list of layers it is in: one of each stays. None: all are in one.
        stream: how open the gates of the residual stream are, [width]; None where it has none.

    Returns:
        Which layers stay; for each attention and FFN which units, bool [count], all of them in a layer that
        leaves; and which dimensions, bool [width], None without a stream.

    Raises:
        ValueError: not even the least fits.
    """
    stacks = [0] * len(layers) if stacks is None else stacks
    start = partial(_Kept, shares, units, minimum, stream)
    state = start()
    for number in _seeds(start, layers, goal, stacks):
        state.add_layer(number)
    if state.cost > goal + ROUNDING:
        raise ValueError(f"at least {state.cost:g} is left")
    waiting: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(layers))}
    for entry, number in _in_order(layers, units, state.blocks):
        if entry == STREAM:
            state.add_block(number, goal)
        elif entry == LAYER:
            state.add_layer(number, goal)
            for each in waiting[number] if state.layers[number] else ():
                state.add_unit(*each, goal)
        elif state.is_gone(entry):
            waiting[shares.homes[entry] or 0].append((entry, number))
        else:
            state.add_unit(entry, number, goal)
    keep = [
        torch.ones_like(stays) if state.is_gone(entry) else stays for entry, stays in enumerate(state.keep)
    ]
    return state.layers, keep, state.stream


def least(
    shares: Shares,
    units: Sequence[bool],
    *,
    minimum: int = 1,
    stacks: Sequence[int] | None = None,
    width: int | None = None,
) -> float:
    """The smallest share that `binarise` can leave.

    Args:
        units: of each attention and FFN, whether it has gates.
        width: of the residual stream; None where it has no gates.
    """
    gated = [
        torch.zeros(len(curve) - 1) if own else None for curve, own in zip(shares.curves, units, strict=True)
    ]
    stacks = [0] * len(shares.layers) if stacks is None else stacks
    start = partial(_Kept, shares, gated, minimum, None if width is None else torch.zeros(width))
    state = start()
    for number in _cheapest(start, stacks):
        state.add_layer(number)
    return state.cost


class _Kept:
    """What stays so far, and what that costs; of a layer that is yet to come, the least that would."""

    def __init__(self, shares: Shares, units: Sequence[Tensor | None], minimum: int, stream: Tensor | None):
        self.shares = shares
        self.layers = [False] * len(shares.layers)
        self.curves = [curve.tolist() for curve in shares.curves]
        self.keep = [
            torch.ones(len(curve) - 1, dtype=torch.bool) if gates is None else _most_open(gates, minimum)
            for curve, gates in zip(shares.curves, units, strict=True)
        ]
        self.counts = [int(stays.sum()) for stays in self.keep]
        self.blocks: list[tuple[float, list[int]]] = []
        self.stream: Tensor | None = None
        if stream is not None:
            step = 1 if len(stream) % STEP else STEP
            self.stream = _most_open(stream, step)
            order = stream.cpu().argsort(descending=True, stable=True)
            self.blocks = [(float(stream.cpu()[block].mean()), block.tolist()) for block in order.split(step)]
        self.width = width_of(self.stream)
        self.cost = shares.of(self.layers, self.counts, self.width)

    def is_gone(self, entry: int) -> bool:
        home = self.shares.homes[entry]
        return home is not None and not self.layers[home]

    def add_layer(self, number: int, goal: float = float("inf")) -> None:
        more = [stays or number == each for each, stays in enumerate(self.layers)]
        cost = self.shares.of(more, self.counts, self.width)
        if cost <= goal + ROUNDING:
            self.layers, self.cost = more, cost

    def add_unit(self, entry: int, unit: int, goal: float) -> None:
        curve, count = self.curves[entry], self.counts[entry]
        if self.keep[entry][unit]:
            return
        cost = self.cost + (curve[count + 1] - curve[count]) * self.shares.curve_at(entry, self.width)
        if cost <= goal + ROUNDING:
            self.keep[entry][unit] = True
            self.counts[entry], self.cost = count + 1, cost

    def add_block(self, number: int, goal: float) -> None:
        assert self.stream is not None
        more = self.stream.clone()
        more[self.blocks[number][1]] = True
        cost = self.shares.of(self.layers, self.counts, width_of(more))
        if cost <= goal + ROUNDING:
            self.stream, self.width, self.cost = more, width_of(more), cost


def width_of(stream: Tensor | None) -> float:
    """The share of the residual stream that is left: bool [width]; None where all of it is."""
    return 1.0 if stream is None else int(stream.sum()) / len(stream)


def _most_open(gates: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(len(gates), dtype=torch.bool)
    chosen[gates.cpu().argsort(descending=True, stable=True)[:count]] = True
    return chosen


def _in_order(
    layers: Sequence[float], units: Sequence[Tensor | None], blocks: Sequence[tuple[float, list[int]]]
) -> list[tuple[int, int]]:
    """(entry, unit) of every gate from the most open one on; (LAYER, number) for a layer's, and (STREAM,
    number) for a block of dimensions."""
    found = [(-float(gate), LAYER, number) for number, gate in enumerate(layers)]
    found += [(-gate, STREAM, number) for number, (gate, _) in enumerate(blocks)]
    for entry, gates in enumerate(units):
        if gates is not None:
            found += [(-gate, entry, unit) for unit, gate in enumerate(gates.tolist())]
    return [(entry, number) for _, entry, number in sorted(found)]


def _seeds(
    start: Callable[[], _Kept], layers: Sequence[float], goal: float, stacks: Sequence[int]
) -> list[int]:
    """The layer of each stack that stays in any case: the most open one, or else the cheapest."""
    open_ = [
        max((number for number, own in enumerate(stacks) if own == stack), key=lambda each: layers[each])
        for stack in sorted(set(stacks))
    ]
    state = start()
    for number in open_:
        state.add_layer(number)
    return open_ if state.cost <= goal + ROUNDING else _cheapest(start, stacks)


def _cheapest(start: Callable[[], _Kept], stacks: Sequence[int]) -> list[int]:
    found = []
    for stack in sorted(set(stacks)):
        costs = {}
        for number in (number for number, own in enumerate(stacks) if own == stack):
            state = start()
            state.add_layer(number)
            costs[number] = state.cost
        found.append(min(costs, key=costs.__getitem__))
    return found
