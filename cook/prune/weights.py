"""Pruning of single weights: held at exactly zero, anywhere in the matrices, in blocks, or N of every M.

What goes is chosen by magnitude (Han et al. 2015), by movement (`movement.py`), or in one shot from
calibration examples (`oneshot.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from cook.errors import CookError
from cook.model import surgery
from cook.model.linear import is_transposed
from cook.model.masks import fold, soften
from cook.passes import Effect, Pass, Term, register
from cook.prune import oneshot
from cook.prune.block import block_means, block_sizes, over_blocks
from cook.prune.movement import MovementMask, soft_movement_mask, soft_movement_penalty
from cook.prune.options import OPTIONS, final_sparsity, mistakes, zeros_at_end
from cook.prune.pattern import pattern_mask, pattern_sizes
from cook.prune.schedule import sparsity_at
from cook.prune.targets import MOVING, rows, targets
from cook.prune.threshold import among, threshold_masks

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy
    from cook.session import Session


@register
class PruneWeights(Pass):
    """Moves a threshold over its window and holds what falls below it at zero.

    Magnitude and the one-shot methods lay hard masks, which stay where they are. Movement lays soft ones,
    whose weights may come back until the window ends.
    """

    name = "prune.weights"
    summary = "set the least important weights to zero, under a schedule or in one shot, and keep them there"
    phase = "weights"
    options: ClassVar[dict[str, Any]] = OPTIONS
    examples = (
        {"sparsity": 0.5},
        {"sparsity": 0.6, "scope": "layer", "schedule": "linear", "every": 2},
        {"pattern": "2:4"},
        {"sparsity": 0.5, "block": [4, 2]},
        {"method": "movement", "sparsity": 0.5},
        {"method": "soft-movement", "penalty": 10, "speed": 100, "threshold": 0.4},
        {"method": "wanda", "pattern": "2:4"},
        {"method": "sparsegpt", "sparsity": 0.5},
    )

    @property
    def method(self) -> str:
        return str(self.given["method"])

    def wants(self) -> frozenset[str]:
        if self.method in MOVING:
            return frozenset({"training"})
        return frozenset({"calibration"}) if self.method in oneshot.METHODS else frozenset()

    def check(self) -> None:
        for mistake in mistakes(self.given):
            raise self.error(mistake.message, option=mistake.option, hint=mistake.hint)

    def plan(self, anatomy: Anatomy) -> Effect:
        names = self._targets(anatomy)
        out_in = [rows(anatomy.model.get_submodule(name)).shape for name in names]
        whole, final = sum(out * width for out, width in out_in), final_sparsity(self.given)
        of, pattern = f"of {whole:,} weights in {len(names)} matrices", self.given["pattern"]
        if final is None:
            note = f"as many {of} to zero as the penalty brings below the threshold"
        else:
            note = f"{pattern} {of} kept" if pattern else f"{final:.1%} {of} to zero"
        return Effect(
            parameters=[f"{name}.weight" for name in names],
            groups={(name, axis): size for name in names for axis, size in self._groups().items()},
            zeros=zeros_at_end(self.given, [(out, width) for out, width in out_in]),
            note=note,
        )

    def attach(self, session: Session) -> None:
        self.targets = self._targets(session.anatomy)
        self.parameters = [f"{name}.weight" for name in self.targets]
        width = self.window.end - self.window.start
        every = self.given["every"]
        told = session.trains and every is not None
        self.every = max(1, session.moment(every, self, "every") if told else round(width / 100))
        self.reached, self.complete = 0.0, False
        self.seen: dict[str, Any] = {}
        self.scored: list[MovementMask] = []
        if self.method in MOVING:
            self._soften(session)
        elif not session.trains:
            self._complete(session)

    def before_step(self, session: Session) -> None:
        elapsed = session.step - self.window.start
        for mask in self.scored:
            mask.learning = session.step in self.window
        if session.step >= self.window.end:
            self._complete(session)
        elif elapsed >= 0 and elapsed % self.every == 0:
            # Under hard masks the largest of a group stay the largest: its pattern never changes.
            at_once = self.given["pattern"] or self.method in oneshot.METHODS
            schedule = "constant" if at_once else self.given["schedule"]
            final = final_sparsity(self.given)
            due = None if final is None else sparsity_at(self.window.progress(session.step), final, schedule)
            self._prune(session, due)

    def losses(self, session: Session) -> dict[str, Term]:
        if self.method != "soft-movement":
            return {}
        progress = self.window.progress(session.step)
        weight = sparsity_at(progress, self.given["penalty"], self.given["schedule"])
        return {"penalty": Term(soft_movement_penalty([mask.scores for mask in self.scored]), weight)}

    def after_step(self, session: Session) -> None:
        # An empty window is yet to come then.
        if self.window.start <= session.step == self.window.end - 1:
            self._complete(session)

    def finish(self, session: Session) -> None:
        self._complete(session)
        # Layers that another pass took out are gone with what was done to them.
        self.targets = [name for name in self.targets if surgery.has(session.model, name)]
        self.parameters = [f"{name}.weight" for name in self.targets]
        for name in self.targets if self.scored else ():
            fold(session.model, name, self.id)
        session.masks.drop(self.id)

    def facts(self, session: Session) -> dict[str, Any]:
        weights = [session.model.get_parameter(name) for name in self.parameters]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        whole = sum(weight.numel() for weight in weights)
        found = {"method": self.method, "zeros": zeros, "of": whole, "sparsity": zeros / whole, **self.seen}
        if (final := final_sparsity(self.given)) is not None:
            found["asked"] = final
        if self.given["pattern"]:
            found["pattern"] = self.given["pattern"]
        found["note"] = (
            f"{zeros:,} of {whole:,} weights ({100 * zeros / whole:.1f} %) in {len(weights)} matrices are"
            f" zero, chosen by {self.method}"
        )
        return found

    def status(self) -> str:
        return f"{self.reached:.0%} zero"

    def state_dict(self) -> dict[str, Any]:
        return {"reached": self.reached, "complete": self.complete, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reached, self.complete, self.seen = state["reached"], state["complete"], dict(state["seen"])

    def _groups(self) -> dict[str, int]:
        """How many rows (`out`) and columns (`in`) are taken together."""
        if self.given["pattern"]:
            return {"in": pattern_sizes(self.given["pattern"])[1]}
        if self.given["block"] is not None:
            return dict(zip(("out", "in"), block_sizes(self.given["block"]), strict=True))
        return {}

    def _targets(self, anatomy: Anatomy) -> list[str]:
        return targets(self, anatomy, inside=self.method in oneshot.METHODS, alone=self.method in MOVING)

    def _soften(self, session: Session) -> None:
        if self.window.end == self.window.start:
            hint = "let it end later: scores are learned inside of the window"
            raise self.error("an empty window, in which nothing moves", option="end", hint=hint)
        self.scored = [soften(session.model, name, self.id, MovementMask) for name in self.targets]
        for mask in self.scored:
            mask.speed = self.given["speed"] if self.method == "soft-movement" else 1.0
        session.train_also(self, nn.ParameterList([mask.parameter for mask in self.scored]))

    def _complete(self, session: Session) -> None:
        """The last threshold; late when the step at the window's end was skipped."""
        if not self.complete:
            self._prune(session, final_sparsity(self.given))
            self.complete = True

    def _prune(self, session: Session, sparsity: float | None) -> None:
        """Choose what stays.

        Args:
            sparsity: that is due; None with soft-movement, which has a threshold.
        """
        if sparsity is not None and sparsity == self.reached:
            return
        if self.scored:
            for mask, keep in zip(self.scored, self._moved(session, sparsity), strict=True):
                mask.keep.copy_(keep)
        else:
            # What nothing will change any more needs no mask to hold it.
            held = session.trains or session.passes[-1] is not self
            for name, keep in self._masks(session, sparsity):
                if held:
                    session.masks.set(self.id, f"{name}.weight", keep)
                else:
                    session.model.get_parameter(f"{name}.weight").detach().mul_(keep)
        if sparsity is None:
            kept = [mask.keep for mask in self.scored]
            sparsity = 1 - sum(int(keep.sum()) for keep in kept) / sum(keep.numel() for keep in kept)
        self.reached = sparsity

    def _moved(self, session: Session, sparsity: float | None) -> list[Tensor]:
        scores = [mask.scores.detach() for mask in self.scored]
        if sparsity is None:
            return [soft_movement_mask(each, self.given["threshold"]) for each in scores]
        modules = [session.model.get_submodule(name) for name in self.targets]
        return self._chosen(scores, sparsity, [_leaving(session, module) for module in modules])

    def _masks(self, session: Session, sparsity: float | None) -> Iterator[tuple[str, Tensor]]:
        """The targets, each with what its weight keeps, in its own shape."""
        assert sparsity is not None
        if self.method in oneshot.METHODS:
            yield from self._looked_at(session, sparsity)
            return
        modules = [session.model.get_submodule(name) for name in self.targets]
        scores = [rows(module).detach().abs() for module in modules]
        if self.given["pattern"]:
            keeps = [pattern_mask(each, *pattern_sizes(self.given["pattern"])) for each in scores]
        else:
            keeps = self._chosen(scores, sparsity, [_leaving(session, module) for module in modules])
        for name, module, keep in zip(self.targets, modules, keeps, strict=True):
            yield name, keep.t().contiguous() if is_transposed(module) else keep

    def _chosen(
        self, scores: list[Tensor], sparsity: float, leaving: Sequence[Tensor | None] = ()
    ) -> list[Tensor]:
        """What stays of scores [out, in] under a threshold, in blocks if so asked.

        Args:
            leaving: what leaves with heads or neurons, and is no zero in the end: the share is of the rest.
        """
        scope, block = self.given["scope"], self.given["block"]
        if block is None and any(gone is not None for gone in leaving):
            return among(scores, sparsity, scope, leaving)
        if block is None:
            return threshold_masks(scores, sparsity, scope)
        sizes = block_sizes(block)
        means = [block_means(each, *sizes) for each in scores]
        return [over_blocks(keep, *sizes) for keep in threshold_masks(means, sparsity, scope)]

    def _looked_at(self, session: Session, sparsity: float) -> Iterator[tuple[str, Tensor]]:
        pattern = pattern_sizes(self.given["pattern"]) if self.given["pattern"] else None
        shot = oneshot.OneShot(self.method, sparsity, pattern)
        examples, leaving = session.examples(self.given["rows"]), partial(_leaving, session)
        try:
            yield from shot.masks(session.anatomy, self.targets, examples, leaving)
        except CookError as error:
            option = "rows" if "calibration" in error.message else None
            raise self.error(error.message, option=option, hint=error.hint) from error
        self.seen = {"tokens": shot.tokens}
        if self.method == "sparsegpt":
            self.seen["damping"] = shot.damping


def _leaving(session: Session, module: Any) -> Tensor | None:
    """What of a weight [out, in] will leave the model."""
    gone = session.masks.leaving(module.weight)
    return gone.t() if gone is not None and is_transposed(module) else gone
