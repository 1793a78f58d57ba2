"""A goal for passes that remove heads and neurons: the share of a model's cost that is left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cook.model.arch.units import UnitGroup
from cook.model.probe.example import Unmeasured, examples, first_through, planned_tokens
from cook.model.probe.measure import EXAMPLES, longest
from cook.prune.specs.goals import Budget, goal_of
from cook.prune.structure import cost
from cook.prune.structure.cost import Cost, Wide

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy
    from cook.passes import Pass

CORRECTIONS, WAVERS = 3, 0.01
"""How often a choice that takes too long is made anew, and what of the time clocks may be off by."""


def check_device(owner: Pass, budget: Budget | None) -> None:
    """Raise CookError for a budget of time on a device that this machine lacks."""
    if budget and budget.device == "cuda" and not torch.cuda.is_available():
        raise owner.error("there is no CUDA device to measure on", option="budget.device")


def measured(
    context: Context,
    units: Sequence[UnitGroup],
    choose: Callable[[Anatomy], list[UnitGroup]],
    budget: Budget,
    stream: UnitGroup | None = None,
) -> Cost:
    """The cost of the session's model in what the budget is about.

    Args:
        units: of that model.
        choose: the same of a model like it.
        stream: its residual stream, to know what goes with its width; not for latency.
    """
    goal, _ = goal_of(budget)
    if goal == "parameters":
        return cost.parameters(context.model, units, stream)
    count = 1 if goal == "macs" else budget.batch
    batch = longest(context.model, context.examples(EXAMPLES), count)
    if goal == "macs":
        found = cost.multiply_accumulates(context.model, units, batch, stream)
    else:
        build, placed = _timing(context, batch, budget)
        found = cost.milliseconds(build, choose, placed)
    return _agreed(context, found)


def within_time(
    context: Context,
    choose: Callable[[Anatomy], list[UnitGroup]],
    budget: Budget,
    left: Callable[[float], list[Tensor]],
) -> tuple[list[Tensor], float]:
    """What stays so that it really takes the share of the time that is asked for.

    A table of times knows layers that are cut alike; those of a choice are not. So what is chosen is timed,
    and as much less asked of the table as it promised too much, until the time is met or it has nothing more.

    Args:
        choose: as in `measured`.
        left: which units stay when so much of the time, by the table, is left.

    Returns:
        A bool mask for each entry of the units, and the share that was measured.
    """
    _, asked = goal_of(budget)
    batch = longest(context.model, context.examples(EXAMPLES), budget.batch)
    build, batch = _timing(context, batch, budget)
    ask, met, keep = asked, 0.0, left(asked)
    for turn in range(CORRECTIONS + 1):
        found = torch.tensor([cost.timed(build, choose, batch, keep)], dtype=torch.float64)
        (met,) = context.agreed(found).tolist()
        if met <= asked + WAVERS or turn == CORRECTIONS:
            break
        ask *= asked / met
        before, keep = keep, left(ask)
        if all(map(torch.equal, before, keep)):
            break
    return keep, met


def planned(
    model: nn.Module,
    units: list[UnitGroup],
    budget: Budget,
    stream: UnitGroup | None = None,
) -> tuple[list[Cost], bool]:
    """The cost of a model without weights, before there is data.

    Args:
        units: of that model.
        stream: its residual stream, as for `measured`.

    Returns:
        The costs, and whether they are what a run counts. Parameters are. Multiply-accumulates are counted
        for a short and for a long example: what can be met for neither can be met for no data. For time, and
        where the model does not run without data, those of the layers' parameters are a guess: a token is
        multiplied with nearly each of these once.
    """
    goal, _ = goal_of(budget)
    if goal == "macs" and (counted := _counted(model, units, stream)):
        return counted, True
    found = cost.parameters(model, units, stream)
    return [found if goal == "parameters" else Cost(goal, found.curves, found.layers)], goal == "parameters"


def _counted(model: nn.Module, units: list[UnitGroup], stream: UnitGroup | None) -> list[Cost]:
    def count(example: dict[str, Tensor]) -> Cost:
        return cost.multiply_accumulates(model, units, example, stream)

    found: list[Cost | None] = []
    for tokens in (2, planned_tokens(model)):
        with suppress(Unmeasured):
            found.append(first_through(examples(model, tokens), count))
    return [each for each in found if each is not None]


def _timing(
    context: Context, batch: Mapping[str, Tensor], budget: Budget
) -> tuple[Callable[[], nn.Module], dict[str, Tensor]]:
    """What makes a model to time, and the batch to time it with, on the device that the budget is about."""
    device = torch.device(budget.device or context.model.device)
    return lambda: _alike(context).to(device), {name: value.to(device) for name, value in batch.items()}


def _agreed(context: Context, found: Cost) -> Cost:
    """What the first process found: others have other examples, and other clocks."""

    def agreed(numbers: Iterable[float]) -> list[float]:
        return context.agreed(torch.tensor(list(numbers), dtype=torch.float64)).tolist()

    def by_layer(numbers: Mapping[str, float]) -> dict[str, float]:
        return dict(zip(numbers, agreed(numbers.values()), strict=True))

    curves = [context.agreed(curve).cpu() for curve in found.curves]
    (rest,) = agreed([found.rest])
    wide = found.wide
    if wide is not None:
        wide = Wide(agreed(wide.curves), by_layer(wide.layers), *agreed([wide.rest, wide.square]))
    return replace(found, curves=curves, layers=by_layer(found.layers), rest=rest, wide=wide)


def _alike(context: Context) -> nn.Module:
    """A model built like the session's, with other weights: hooks and stand-ins are not timed."""
    model: Any = context.model
    with torch.random.fork_rng(devices=[]):
        other = type(model)(copy.deepcopy(model.config)).to(model.dtype)
    context.blueprint.apply(other)
    return other
