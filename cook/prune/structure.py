"""What pruning heads and pruning neurons share: scores, a schedule, and units that leave at the end.

While the model trains, what is to leave is held at zero, so that shapes stay and the rest can make up for
it; at each moment of the schedule the scores are taken anew, and what is gone stays gone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cook.model.targets import select
from cook.model.units import Units, remove, weights
from cook.passes import MOMENT, SELECTION, WINDOW, Effect, Pass
from cook.prune.choice import least, spare
from cook.prune.importance import gradient_importance, magnitude_importance, normalized, random_importance
from cook.prune.schedule import sparsity_at

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy
    from cook.session import Session

UNITS: dict[str, Any] = {
    "sparsity": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "share of all that leaves",
    },
    "importance": {
        "enum": ["gradient", "magnitude", "random"],
        "default": "gradient",
        "description": "what says which go: how the loss of examples would change (Michel et al. 2019), the"
        " size of their weights, or chance, as a control",
    },
    "rows": {
        "type": "integer",
        "minimum": 1,
        "default": 512,
        "description": "training examples that gradients are taken of, all there are if fewer",
    },
    "seed": {"type": "integer", "minimum": 0, "default": 0, "description": "of chance"},
    "scope": {
        "enum": ["global", "layer"],
        "default": "global",
        "description": "compare over all layers together, or take as many from each",
    },
    "minimum": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "as many stay in each layer at least",
    },
    "limit": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 1.0,
        "description": "largest share that one layer loses",
    },
    "schedule": {
        "enum": ["cubic", "linear", "constant"],
        "default": "cubic",
        "description": "how the share grows from the start of the window to its end; constant: all at once",
    },
    "every": {
        **MOMENT,
        "default": None,
        "type": ["string", "integer", "null"],
        "description": "how often some go and the scores are taken anew; 10 % of the window when left out",
    },
    **SELECTION,
    **WINDOW,
    "end": {**WINDOW["end"], "default": "50%"},
}
"""The options of both passes."""


class Structure(Pass):
    """Holds the least important units at zero, more of them with time, and removes them at the end."""

    phase = "structure"
    required = ("sparsity",)
    multiple = 1

    def units(self, anatomy: Anatomy) -> list[Units]:
        """All units of the model's kind."""
        raise NotImplementedError

    def wants(self) -> frozenset[str]:
        return frozenset({"calibration"}) if self.given["importance"] == "gradient" else frozenset()

    def plan(self, anatomy: Anatomy) -> Effect:
        units = self._chosen(anatomy)
        self._check_spare(units)
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
        return Effect(
            parameters=[f"{part.module}.weight" for each in units for part in each.parts],
            edits=edits,
            loses={
                (part.module, part.axis): math.gcd(*(number for span in part.spans for number in span))
                for each in units
                for part in each.parts
            },
            claims=frozenset(f"{each.kind} of {each.where}" for each in units),
            note=f"{gone:,} of {whole:,} {self._called(units)} leave with {parameters:,} parameters, "
            f"chosen by {self.given['importance']}",
        )

    def attach(self, session: Session) -> None:
        self.chosen = self._chosen(session.anatomy)
        self._check_spare(self.chosen)
        self.keep = [torch.ones(each.count, dtype=torch.bool) for each in self.chosen]
        self.owned = [weights(session.model, each) for each in self.chosen]
        self.reached = 0.0
        width = self.window.end - self.window.start
        every = self.given["every"]
        self.every = session.moment(every, self, "every") if every is not None else round(width / 10)
        self.every = max(1, self.every)
        if not session.trains:
            self._complete(session)

    def before_step(self, session: Session) -> None:
        elapsed = session.step - self.window.start
        if session.step >= self.window.end:
            self._complete(session)
        elif elapsed >= 0 and elapsed % self.every == 0:
            progress = self.window.progress(session.step)
            self._prune(session, sparsity_at(progress, self.given["sparsity"], self.given["schedule"]))

    def after_step(self, session: Session) -> None:
        if session.step == self.window.end - 1:
            self._complete(session)

    def finish(self, session: Session) -> None:
        self._complete(session)
        for each, stays in zip(self.chosen, self.keep, strict=True):
            if not stays.all():
                session.remove(each, stays)
        session.masks.drop(self.id)

    def facts(self, session: Session) -> dict[str, Any]:
        left = [int(stays.sum()) for stays in self.keep]
        whole = [each.count for each in self.chosen]
        gone = [all_ - some for all_, some in zip(whole, left, strict=True)]
        return {
            "left": {each.where: stays for each, stays in zip(self.chosen, left, strict=True)},
            "removed": sum(gone),
            "of": sum(whole),
            "share": sum(gone) / sum(whole),
            "asked": float(self.given["sparsity"]),
            "parameters": sum(count * each for count, each in zip(gone, self.owned, strict=True)),
            "importance": self.given["importance"],
        }

    def status(self) -> str:
        whole = sum(len(each) for each in self.keep)
        return f"{whole - sum(int(each.sum()) for each in self.keep)} of {whole} {self.chosen[0].kind} gone"

    def state_dict(self) -> dict[str, Any]:
        return {"reached": self.reached, "keep": list(self.keep)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reached, self.keep = state["reached"], [each.cpu() for each in state["keep"]]

    def _chosen(self, anatomy: Anatomy) -> list[Units]:
        """The units whose outputs lead to modules that the recipe selects."""
        modules = set(select(anatomy, self.given["include"], self.given["exclude"]))
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

    def _check_spare(self, units: list[Units]) -> None:
        options = self._limits()
        spared, whole = sum(spare(each.count, **options) for each in units), sum(each.count for each in units)
        wanted = round(self.given["sparsity"] * whole)
        if wanted - spared >= max(1, self.multiple / 2):
            raise self.error(
                f"{wanted} of {whole} {self._called(units)} would go, the layers can spare {spared}",
                option="sparsity",
                hint=f"at most {spared / whole:.3g} with minimum {options['minimum']}, limit"
                f" {options['limit']:g}" + (f" and multiple {self.multiple}" if self.multiple > 1 else ""),
            )
        if wanted == 0 or not any(not each.all() for each in self._planned(units)):
            raise self.error(
                f"{self.given['sparsity']:g} of {whole} {self._called(units)} is less than one",
                option="sparsity",
                hint=f"the next that takes something away is {self.multiple / whole:.3g}",
            )

    def _planned(self, units: list[Units]) -> list[Tensor]:
        """As many as will go. Which ones is found on data; for sizes it suffices to take them evenly."""
        even = [(torch.arange(each.count) + 0.5) / each.count for each in units]
        return self._least(even, float(self.given["sparsity"]))

    def _called(self, units: list[Units]) -> str:
        grouped = max(each.heads for each in units)
        return units[0].kind if grouped == 1 else f"groups of {grouped} {units[0].kind} with one key"

    def _limits(self) -> dict[str, Any]:
        return {
            "minimum": self.given["minimum"],
            "limit": self.given["limit"],
            "multiple": self.multiple,
        }

    def _least(self, scores: list[Tensor], share: float) -> list[Tensor]:
        return least(scores, share, scope=self.given["scope"], **self._limits())

    def _scores(self, session: Session) -> list[Tensor]:
        if self.given["importance"] == "magnitude":
            return magnitude_importance(session.model, self.chosen)
        if self.given["importance"] == "random":
            return random_importance(self.chosen, self.given["seed"])
        return gradient_importance(session.model, self._examples(session), self.chosen)

    def _examples(self, session: Session) -> Iterator[dict[str, Tensor]]:
        for batch in session.examples(self.given["rows"]):
            if "labels" not in batch:
                raise self.error(
                    "the calibration examples have no labels, so there is no loss to differentiate",
                    option="importance",
                    hint="give them labels, or use importance: magnitude",
                )
            yield batch

    def _prune(self, session: Session, share: float) -> None:
        whole = sum(each.count for each in self.chosen)
        if round(share * whole) <= round(self.reached * whole):
            return
        scores = [each.cpu() for each in normalized(self._scores(session))]
        for each, stays in zip(scores, self.keep, strict=True):
            each[~stays] = -torch.inf  # what is gone stays gone
        self.keep = [session.agreed(stays).cpu() for stays in self._least(scores, share)]
        for units, stays in zip(self.chosen, self.keep, strict=True):
            if not stays.all():
                session.hold(self, units, stays)
        self.reached = share

    def _complete(self, session: Session) -> None:
        """All that is asked for; late when the step at the window's end was skipped."""
        self._prune(session, float(self.given["sparsity"]))
