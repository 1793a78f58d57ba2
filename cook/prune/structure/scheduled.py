"""What pruning heads and neurons shares: scores, a schedule, a goal, and units that leave at the end.

While the model trains, what is to leave is held at zero, so that shapes stay and the rest can make up for
it; at each update of the schedule the scores are taken anew, and what is gone stays gone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cook.errors import CookError
from cook.model.arch.targets import select
from cook.model.arch.units import UnitGroup, remaining, weights
from cook.model.edits.proof import prove
from cook.model.edits.removal import remove
from cook.passes import Effect, Pass
from cook.prune.specs.unit_options import HeadsOptions
from cook.prune.specs.units import StructureSpec
from cook.prune.structure import budget as goals
from cook.prune.structure.choice import least, spare, within
from cook.prune.structure.importance import (
    gradient_importance,
    magnitude_importance,
    normalized,
    random_importance,
)
from cook.prune.weights.schedule import sparsity_at

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy
    from cook.prune.structure.cost import Cost


class Structure(StructureSpec, Pass):
    """Holds the least important units at zero, more of them with time, and removes them at the end."""

    cost: Cost | None = None
    """What the units cost, when there is a budget."""

    def units(self, anatomy: Anatomy) -> list[UnitGroup]:
        """All units of the model's kind."""
        raise NotImplementedError

    def plan(self, anatomy: Anatomy) -> Effect:
        goals.check_device(self, self.options.budget)
        units = self._chosen(anatomy)
        self._prove(anatomy, units)
        if self.options.budget is not None:
            costs, counted = goals.planned(anatomy.model, units, self.options.budget)
            self.cost = costs[-1]
            if counted:
                self._check_costs(units, costs)
        else:
            self._check(units)
        keep = self._planned(units)
        model = copy.deepcopy(anatomy.model)
        gone = sum(int((~each).sum()) for each in keep)
        parameters = sum(
            int((~stays).sum()) * weights(anatomy.model, each)
            for each, stays in zip(units, keep, strict=True)
        )
        edits = [
            edit for each, stays in zip(units, keep, strict=True) for edit in remove(model, each, stays)[0]
        ]
        whole = sum(each.count for each in units)
        exact = self.options.budget is None
        return Effect(
            parameters=[f"{part.module}.weight" for each in units for part in each.parts],
            edits=edits,
            loses={
                (part.module, part.axis): math.gcd(*(number for span in part.spans for number in span))
                for each in units
                for part in each.parts
            },
            claims=frozenset(f"{each.kind} of {each.where}" for each in units),
            note=f"{'' if exact else 'about '}{gone:,} of {whole:,} {self._called(units)} leave with "
            f"{parameters:,} parameters, chosen by {self.options.importance}",
            sizes="" if exact else "about",
        )

    def attach(self, context: Context) -> None:
        self.chosen = self._chosen(context.anatomy)
        if self.options.budget is not None:
            self.cost = goals.measured(context, self.chosen, self._chosen, self.options.budget)
        if not self._timed:
            self._check(self.chosen)
        self._prove(context.anatomy, self.chosen, context.inputs)
        self.keep = [torch.ones(each.count, dtype=torch.bool) for each in self.chosen]
        self.owned = [weights(context.model, each) for each in self.chosen]
        self.reached = 0.0
        self.measured: float | None = None  # of the time, once what goes is final
        width = self.window.end - self.window.start
        every = self.options.every
        self.every = context.schedule_step(every, self, "every") if every is not None else round(width / 10)
        self.every = max(1, self.every)
        if not context.trains:
            self._complete(context)

    def before_step(self, context: Context) -> None:
        elapsed = context.step - self.window.start
        if context.step >= self.window.end:
            self._complete(context)
        elif elapsed >= 0 and elapsed % self.every == 0:
            progress = self.window.progress(context.step)
            self._prune(context, sparsity_at(progress, self.share, self.options.schedule))

    def after_step(self, context: Context) -> None:
        # An empty window is yet to come then.
        if self.window.start <= context.step == self.window.end - 1:
            self._complete(context)

    def finish(self, context: Context) -> None:
        self._complete(context)
        for each, stays in zip(self.chosen, self.keep, strict=True):
            if not stays.all():
                context.removal.remove(each, stays)
        context.masks.drop(self.id)

    def facts(self, context: Context) -> dict[str, Any]:
        left = [int(stays.sum()) for stays in self.keep]
        for each, stays in zip(self.chosen, left, strict=True):
            check_remaining(self, context.model, each, stays)
        whole = [each.count for each in self.chosen]
        gone = [all_ - some for all_, some in zip(whole, left, strict=True)]
        found: dict[str, Any] = {}
        if self.cost is not None:
            # Of the model that the pass found: passes that finished before it took their part.
            found = {"goal": self.cost.goal, "reached": self.cost.of(left) / self.cost.whole}
            if self._timed:
                found |= {"foretold": found["reached"], "reached": self.measured}
        note = f"{sum(gone):,} of {sum(whole):,} {self._units()} removed"
        if self.cost is not None:
            what = {"macs": "multiply-accumulates"}.get(self.cost.goal, self.cost.goal)
            note += f"; {100 * found['reached']:.1f} % of the {what} left, asked {100 * self.share:.1f} %"
        return found | {
            "note": note,
            "left": {each.where: stays for each, stays in zip(self.chosen, left, strict=True)},
            "removed": sum(gone),
            "of": sum(whole),
            "share": sum(gone) / sum(whole),
            "asked": self.share if self.cost is None else 1 - self.share,
            "parameters": sum(count * each for count, each in zip(gone, self.owned, strict=True)),
            "importance": self.options.importance,
        }

    def _units(self) -> str:
        """What is removed, in words: "heads", "heads and neurons"."""
        return " and ".join(dict.fromkeys(each.kind for each in self.chosen))

    def status(self) -> str:
        whole = sum(len(each) for each in self.keep)
        gone = whole - sum(int(each.sum()) for each in self.keep)
        return f"{gone} of {whole} {' and '.join(_kinds(self.chosen))} gone"

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"reached": self.reached, "met": self.measured, "keep": list(self.keep)}
        if self.cost is not None:
            # Time measured anew would be another time.
            found["cost"] = [list(self.cost.curves), dict(self.cost.layers), self.cost.rest]
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reached, self.measured = state["reached"], state["met"]
        self.keep = [each.cpu() for each in state["keep"]]
        if self.cost is not None:
            curves, layers, rest = state["cost"]
            self.cost = replace(self.cost, curves=[each.cpu() for each in curves], layers=layers, rest=rest)

    @property
    def scope(self) -> str:
        """Where scores are compared: over all layers, or within each; a budget compares all."""
        return self.options.scope if isinstance(self.options, HeadsOptions) else "global"

    @property
    def share(self) -> float:
        """Of the units, or of their model's cost, that is to leave."""
        if self.options.budget is None:
            assert self.options.sparsity is not None
            return self.options.sparsity
        return 1 - goals.goal_of(self.options.budget)[1]

    @property
    def _timed(self) -> bool:
        return self.cost is not None and self.cost.goal == "latency"

    def _chosen(self, anatomy: Anatomy) -> list[UnitGroup]:
        """The units whose outputs lead to modules that the recipe selects."""
        modules = set(select(anatomy, self.options.include, self.options.exclude))
        units = self.units(anatomy)
        found = [each for each in units if all(part.module in modules for part in each.outputs)]
        for each in units:
            inside = [part.module in modules for part in each.outputs]
            if any(inside) and not all(inside):
                raise self.error(
                    f"some of the layers at {each.where} are selected, and all of them must keep the same",
                    hint="include or exclude them together",
                )
        if not found:
            raise self.error("no layer that is selected has any", option="include")
        return found

    def _prove(
        self, anatomy: Anatomy, units: list[UnitGroup], inputs: Callable[[], Iterator[Any]] | None = None
    ) -> None:
        try:
            prove(anatomy, units, inputs)
        except CookError as error:
            raise self.error(error.message, hint=error.hint) from error

    def _check(self, units: list[UnitGroup]) -> None:
        """Raise CookError for a goal that cannot be reached, or that takes nothing away."""
        if self.cost is not None:
            self._check_costs(units, [self.cost])
            return
        spared = [spare(each.count, **self._limits(each)) for each in units]
        limits = self._said_limits()
        whole, multiple = sum(each.count for each in units), self.multiple(units[0])
        wanted = round(self.share * whole)
        if wanted - sum(spared) >= max(1, multiple / 2):
            raise self.error(
                f"{wanted} of {whole} {self._called(units)} would go, the layers can spare {sum(spared)}",
                option="sparsity",
                hint=f"at most {sum(spared) / whole:.3g} with {limits}"
                + (f" and multiple {multiple}" if multiple > 1 else ""),
            )
        if self.scope == "layer":
            for each, some in zip(units, spared, strict=True):
                asked = round(self.share * each.count)
                if asked - some >= max(1, self.multiple(each) / 2):
                    what = f"{asked} of {each.count} {self._called([each])} of {each.where}"
                    raise self.error(
                        f"{what} would go, it can spare {some}",
                        option="sparsity",
                        hint=f"at most {some / each.count:.3g} with {limits}, or scope: global",
                    )
        if wanted == 0 or not any(not each.all() for each in self._planned(units)):
            where, of = "", whole
            if self.scope == "layer":
                where, of = " of a layer", max(each.count for each in units)
            raise self.error(
                f"{self.share:g} of {of} {self._called(units)}{where} is less than one",
                option="sparsity",
                hint=f"the next that takes something away is {math.ceil(1000 * multiple / of) / 1000:g}",
            )

    def _said_limits(self) -> str:
        return f"minimum {self.options.minimum} and limit {self.options.limit:g}"

    def _check_costs(self, units: list[UnitGroup], costs: Sequence[Cost]) -> None:
        """Raise CookError for a budget that cannot be met at any of several costs."""
        kept = [each.count - spare(each.count, **self._limits(each)) for each in units]
        nearest, left = [each.of(kept) / each.whole for each in costs], 1 - self.share
        if min(nearest) <= left:
            return
        ask, limits = math.ceil(1000 * max(nearest)) / 1000, self._said_limits()
        hint = f"ask for {ask:g} with {limits}, or choose among more"
        raise self.error(
            f"{left:g} of the {costs[0].goal} cannot be met: at least {max(nearest):.3g} is left when all"
            f" {self._called(units)} that can go have gone",
            option="budget",
            hint=hint if ask < 1 else f"with {limits} next to nothing of these can go",
        )

    def _planned(self, units: list[UnitGroup]) -> list[Tensor]:
        """As many as will go. Which ones is found on data; for sizes it suffices to take them evenly."""
        even = [(torch.arange(each.count) + 0.5) / each.count for each in units]
        return self._left(units, self._for_their_cost(even), self.share)

    def _for_their_cost(self, scores: list[Tensor]) -> list[Tensor]:
        """Scores that know nothing of size, so that what is compared per cost is the scores themselves."""
        if self.cost is None:
            return scores
        ones = [float(curve[-1]) / (len(curve) - 1) for curve in self.cost.curves]
        return [each * one for each, one in zip(scores, ones, strict=True)]

    def _called(self, units: list[UnitGroup]) -> str:
        grouped = max(each.heads for each in units)
        kinds = [
            f"groups of {grouped} heads with one key" if grouped > 1 and kind == "heads" else kind
            for kind in _kinds(units)
        ]
        return " and ".join(kinds)

    def multiple(self, units: UnitGroup) -> int:
        """Of what the number of units that stay is one."""
        return int(getattr(self.options, "multiple", 1)) if units.kind == "neurons" else 1

    def _limits(self, units: UnitGroup) -> dict[str, Any]:
        limits = {"minimum": self.options.minimum, "limit": self.options.limit}
        return {**limits, "multiple": self.multiple(units)}

    def _left(self, units: list[UnitGroup], scores: list[Tensor], share: float) -> list[Tensor]:
        """Which units stay when such a share has gone, of the units or of the cost."""
        if self.cost is None:
            return least(scores, share, scope=self.scope, **self._limits(units[0]))
        own = sum(float(curve[-1]) for curve in self.cost.curves)
        return within(
            scores,
            self.cost.curves,
            own - share * self.cost.whole,
            minimum=self.options.minimum,
            limit=self.options.limit,
            multiples=[self.multiple(each) for each in units],
        )

    def _scores(self, context: Context) -> list[Tensor]:
        importance = self.options.importance
        if importance == "random":
            return self._for_their_cost(random_importance(self.chosen, self.options.seed))
        if importance == "magnitude":
            found = self._for_their_cost(magnitude_importance(context.model, self.chosen))
        else:
            power = 2 if importance == "fisher" else 1
            found = gradient_importance(context.model, self._examples(context), self.chosen, power=power)
        if not all(bool(each.isfinite().all()) for each in found) or not any(each.any() for each in found):
            raise self.error(
                "all scores are zero, or some are no numbers: they say nothing of what matters",
                option="importance",
                hint="look at the weights and the loss; in float16 small gradients vanish: load in float32",
            )
        return normalized(found) if getattr(self.options, "normalize", None) else found

    def _examples(self, context: Context) -> Iterator[dict[str, Tensor]]:
        empty = True
        for batch in context.examples(self.options.rows):
            empty = False
            if "labels" not in batch:
                raise self.error(
                    "the calibration examples have no labels, so there is no loss to differentiate",
                    option="importance",
                    hint="give them labels, or use importance: magnitude",
                )
            yield batch
        if empty:
            hint = "give some, or use importance: magnitude"
            raise self.error("there are no calibration examples to look at", option="importance", hint=hint)

    def _prune(self, context: Context, share: float) -> None:
        whole = sum(each.count for each in self.chosen)
        due = share > self.reached
        if self.cost is None:
            due = round(share * whole) > round(self.reached * whole)
        if not due:
            return
        if self._timed and self.reached == 0:
            self._check(self.chosen)  # only now: a run that goes on has the table of its beginning
        scores = [each.cpu() for each in self._scores(context)]
        for each, stays in zip(scores, self.keep, strict=True):
            each[~stays] = -torch.inf  # what is gone stays gone
        keep = self._left(self.chosen, scores, share)
        if self._timed and share >= self.share:
            assert self.options.budget is not None
            keep, self.measured = goals.within_time(
                context,
                self._chosen,
                self.options.budget,
                lambda left: self._left(self.chosen, scores, 1 - left),
            )
        self.keep = [context.agreed(stays).cpu() for stays in keep]
        for units, stays in zip(self.chosen, self.keep, strict=True):
            if not stays.all():
                context.removal.hold(self.id, units, stays)
        self.reached = share

    def _complete(self, context: Context) -> None:
        """All that is asked for; late when the step at the window's end was skipped."""
        self._prune(context, self.share)


def check_remaining(owner: Pass, model: Any, units: UnitGroup, count: int) -> None:
    """Raise RunError unless every module of the finished model that reads these units has `count` of them."""
    for module, found in remaining(model, units):
        owner.check_measured(f"{units.kind} of {module}", int(found) if found % 1 == 0 else found, count)


def _kinds(units: list[UnitGroup]) -> list[str]:
    return list(dict.fromkeys(each.kind for each in units))
