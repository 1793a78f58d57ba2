"""What the options of `lowrank.linear` say of ranks: before there are data, and with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cook.lowrank.options import SHARE, Budget
from cook.lowrank.ranks import even, for_energy, least_cost, least_share, spread, worthwhile
from cook.lowrank.targets import Target, rank_told
from cook.model.nn.linear import linears, weight_count
from cook.model.probe.measure import EXAMPLES, longest, macs_by_module

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy
    from cook.passes import Pass

FEWER = "a smaller `multiple`: ranks that are one of it would save nothing"
Ranks = list[int | None]
"""One for each target; None for one that stays whole."""


def told(owner: Pass, anatomy: Anatomy, targets: Sequence[Target]) -> Ranks | None:
    """The ranks that the options say; None where they are found on weights or examples.

    Raises:
        CookError: a rank is zero or above the full one, or nothing would be saved.
    """
    options = owner.options
    if options.rank is None and options.ranks is None:
        if options.energy is not None or options.budget is not None:
            return None
        _check_share(owner, targets)
        if spreads(owner):
            return None
        return list(even([each.size for each in targets], share(owner), options.multiple))
    option = "ranks" if options.rank is None else "rank"
    ranks: Ranks = []
    for each in targets:
        rank = options.rank or rank_told(owner, anatomy, each)
        if rank > min(each.size):
            message = f"rank {rank} is above the full rank {min(each.size)} of {each.name}"
            hint = f"up to {worthwhile(*each.size)} two factors are smaller than it; or exclude it"
            raise owner.error(message, option=option, hint=hint)
        ranks.append(rank if rank <= worthwhile(*each.size) else None)
    if not any(ranks):
        message = "saves nothing: two factors of that rank are no smaller than their matrix"
        most = max(worthwhile(*each.size) for each in targets)
        raise owner.error(message, option=option, hint=f"at most {most}")
    return ranks


def spreads(owner: Pass) -> bool:
    """Whether a share of parameters is spread over the targets: asked for, or from data unless refused."""
    asked = owner.options.spread
    return owner.options.method == "data" if asked is None else bool(asked)


def share(owner: Pass) -> float:
    """Of the targets' parameters that is kept, where that is asked."""
    return float(SHARE if owner.options.parameters is None else owner.options.parameters)


def guessed(owner: Pass, anatomy: Anatomy, targets: Sequence[Target]) -> Ranks:
    """Even ranks that come to about the size that is asked for.

    Raises:
        CookError: a budget of parameters cannot be met.
    """
    options, model = owner.options, anatomy.model
    sizes, multiple = [each.size for each in targets], options.multiple
    left = share(owner)
    if options.energy is not None:
        left = float(options.energy)
    elif options.budget is not None:
        goal, budget = goal_of(owner)
        whole = [float(each.count) for each in targets]
        # A token is multiplied with nearly each weight of a linear layer once.
        inside = sum(weight_count(model.get_submodule(name)) for name in linears(model))
        everything = float(_parameters(model) if goal == "parameters" else inside)
        allowed = sum(whole) - (1 - budget) * everything
        if goal == "parameters":
            _check_budget(owner, targets, whole, allowed, everything)
        left = allowed / sum(whole)
    ranks = even(sizes, max(left, least_share(sizes, multiple)), multiple)
    return [rank if rank <= worthwhile(*size) else None for rank, size in zip(ranks, sizes, strict=True)]


def chosen(
    owner: Pass,
    targets: Sequence[Target],
    worths: Sequence[Tensor],
    costs: Sequence[float],
    allowed: float,
) -> Ranks:
    """The ranks that spectra say.

    Args:
        worths: [k] of each target.
        costs, allowed: as `costs` gives them.
    """
    multiple = owner.options.multiple
    if owner.options.energy is None:
        sizes = [each.size for each in targets]
        return spread([each.cpu() for each in worths], sizes, costs, allowed, multiple)
    ranks = [for_energy(each, owner.options.energy, multiple) for each in worths]
    return [
        rank if rank <= worthwhile(*each.size) else None for rank, each in zip(ranks, targets, strict=True)
    ]


def costs(owner: Pass, context: Context, targets: Sequence[Target]) -> tuple[list[float], float]:
    """What each target costs whole, and what all of them may cost together.

    Raises:
        CookError: the budget cannot be met.
    """
    own = [float(each.count) for each in targets]
    if owner.options.budget is None:
        return own, share(owner) * sum(own)
    goal, left = goal_of(owner)
    everything = float(_parameters(context.model))
    if goal == "macs":
        batch = longest(context.model, context.examples(EXAMPLES))
        counted = macs_by_module(context.model, batch)
        if idle := next((each.name for each in targets if not counted.get(each.name)), None):
            message = f"{idle} is not run by the model, so it costs no macs"
            raise owner.error(message, option="budget", hint=f"exclude: [{idle}]")
        # Other processes have other examples.
        several = [counted[""], *(counted[each.name] for each in targets)]
        everything, *own = context.agreed(torch.tensor(several, dtype=torch.float64)).tolist()
    allowed = sum(own) - (1 - left) * everything
    _check_budget(owner, targets, own, allowed, everything)
    return own, allowed


def goal_of(owner: Pass) -> tuple[str, float]:
    """What a budget is about, and the share of it that is left at most."""
    budget: Budget = owner.options.budget
    ((goal, left),) = ((name, each) for name, each in vars(budget).items() if each is not None)
    return goal, float(left)


def _parameters(model: torch.nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def _check_share(owner: Pass, targets: Sequence[Target]) -> None:
    sizes, multiple = [each.size for each in targets], owner.options.multiple
    least = least_share(sizes, multiple)
    if spreads(owner):
        own = [float(each.count) for each in targets]
        least = least_cost(sizes, own, multiple) / sum(own)
    if share(owner) < least:
        message = f"{share(owner):g} of the parameters would give some target a rank of zero"
        hint = f"the nearest that can be is {_up(least):g}"
        raise owner.error(message, option="parameters", hint=hint if least < 1 else FEWER)


def _check_budget(
    owner: Pass, targets: Sequence[Target], own: Sequence[float], allowed: float, everything: float
) -> None:
    least = least_cost([each.size for each in targets], own, owner.options.multiple)
    if least > allowed:
        goal, left = goal_of(owner)
        nearest = _up((everything - sum(own) + least) / everything)
        raise owner.error(
            f"{left:g} of the {goal} cannot be met: {nearest:g} is left with the lowest rank for each",
            option="budget",
            hint=f"ask for {nearest:g}, or include more" if nearest < 1 else FEWER,
        )


def _up(share: float) -> float:
    """Rounded up to three digits, so that asking for it is enough."""
    return math.ceil(1000 * share - 1e-9) / 1000
