"""Pruning of single weights: held at exactly zero, anywhere in the matrices, in blocks, or N of every M.

What goes is chosen by magnitude (Han et al. 2015), by movement (`movement.py`), or in one shot from
calibration examples (`oneshot.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cook.errors import CookError
from cook.model.arch.targets import left_out
from cook.model.nn import surgery
from cook.model.nn.linear import is_transposed
from cook.model.nn.masks import fold, soften
from cook.passes import Effect, Pass, Term, register
from cook.prune.specs.options import (
    MOVING,
    ONE_SHOT,
    block_sizes,
    final_sparsity,
    pattern_sizes,
    zeros_at_end,
)
from cook.prune.specs.passes import WeightsSpec
from cook.prune.weights import oneshot
from cook.prune.weights.block import block_means, over_blocks
from cook.prune.weights.movement import MovementMask, soft_movement_mask, soft_movement_penalty
from cook.prune.weights.pattern import pattern_mask
from cook.prune.weights.schedule import sparsity_at
from cook.prune.weights.targets import own_shape, rows, targets
from cook.prune.weights.threshold import among, threshold_masks

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy


@register
class PruneWeights(WeightsSpec, Pass):
    """Raises a threshold over the window and keeps the weights below it at zero.

    Magnitude and the one-shot methods use hard masks: pruned weights stay zero. Movement uses soft masks:
    weights may return until the window ends.
    """

    @property
    def targets(self) -> list[str]:
        """The modules that hold the parameters to prune."""
        return [_module(name) for name in self.parameters]

    def plan(self, anatomy: Anatomy) -> Effect:
        names = self._targets(anatomy)
        modules = [name.rpartition(".")[0] for name in names]
        out_in = [rows(anatomy.model, name).shape for name in names]
        whole, final = sum(out * width for out, width in out_in), final_sparsity(self.options)
        of, pattern = f"of {whole:,} weights in {len(names)} matrices", self.options.pattern
        if final is None:
            note = f"as many {of} to zero as the penalty brings below the threshold"
        else:
            note = f"{pattern} {of} kept" if pattern else f"{final:.1%} {of} to zero"
        if missed := self._missed(anatomy, modules):
            note += f"; {missed}"
        return Effect(
            parameters=names,
            groups={(name, axis): size for name in modules for axis, size in self._groups().items()},
            zeros=zeros_at_end(self.options, [(out, width) for out, width in out_in]),
            note=note,
        )

    def attach(self, context: Context) -> None:
        self.parameters = self._targets(context.anatomy)
        self.missed = self._missed(context.anatomy, self.targets)
        self.size = sum(each.numel() for each in context.model.parameters())
        width = self.window.end - self.window.start
        every = self.options.every
        self.every = max(1, round(width / 100))
        if context.trains and every is not None:
            self.every = max(1, context.schedule_step(every, self, "every"))
        self.reached, self.complete = 0.0, False
        self.seen: dict[str, Any] = {}
        self.scored: list[MovementMask] = []
        if self.method in MOVING:
            self._soften(context)
        elif not context.trains:
            self._complete(context)

    def before_step(self, context: Context) -> None:
        elapsed = context.step - self.window.start
        for mask in self.scored:
            mask.learning = context.step in self.window
        if context.step >= self.window.end:
            self._complete(context)
        elif elapsed >= 0 and elapsed % self.every == 0:
            # Under hard masks the largest of a group stay the largest: its pattern never changes.
            at_once = self.options.pattern or self.method in ONE_SHOT
            schedule = "constant" if at_once else self.options.schedule
            final = final_sparsity(self.options)
            due = None if final is None else sparsity_at(self.window.progress(context.step), final, schedule)
            self._prune(context, due)

    def losses(self, context: Context) -> dict[str, Term]:
        if self.method != "soft-movement":
            return {}
        progress = self.window.progress(context.step)
        weight = sparsity_at(progress, self.options.penalty, self.options.schedule)
        return {"penalty": Term(soft_movement_penalty([mask.scores for mask in self.scored]), weight)}

    def after_step(self, context: Context) -> None:
        # An empty window is yet to come then.
        if self.window.start <= context.step == self.window.end - 1:
            self._complete(context)

    def finish(self, context: Context) -> None:
        self._complete(context)
        # Layers that another pass took out are gone with what was done to them.
        self.parameters = [name for name in self.parameters if surgery.has(context.model, _module(name))]
        for name in self.parameters if self.scored else ():
            fold(context.model, _module(name), self.id)
        context.masks.drop(self.id)

    def facts(self, context: Context) -> dict[str, Any]:
        weights = [context.model.get_parameter(name) for name in self.parameters]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        whole = sum(weight.numel() for weight in weights)
        found = {"method": self.method, "zeros": zeros, "of": whole, "sparsity": zeros / whole, **self.seen}
        found["share_of_model"] = min(1.0, whole / self.size)
        if (final := final_sparsity(self.options)) is not None:
            found["asked"] = final
        if self.options.pattern:
            found["pattern"] = self.options.pattern
        found["note"] = (
            f"{zeros:,} of {whole:,} weights ({100 * zeros / whole:.1f} %) in {len(weights)} matrices are"
            f" zero, chosen by {self.method}"
        )
        if self.missed:
            found["note"] += f"; {self.missed}"
        return found

    def status(self) -> str:
        return f"{self.reached:.0%} zero"

    def state_dict(self) -> dict[str, Any]:
        return {"reached": self.reached, "complete": self.complete, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reached, self.complete, self.seen = state["reached"], state["complete"], dict(state["seen"])

    def _groups(self) -> dict[str, int]:
        """How many rows (`out`) and columns (`in`) are taken together."""
        if self.options.pattern:
            return {"in": pattern_sizes(self.options.pattern)[1]}
        if self.options.block is not None:
            return dict(zip(("out", "in"), block_sizes(self.options.block), strict=True))
        return {}

    def _missed(self, anatomy: Anatomy, modules: Sequence[str]) -> str:
        """What the selection holds and is not pruned, in words; nothing where all of it is."""
        return left_out(anatomy, self.options.include, self.options.exclude, modules)

    def _targets(self, anatomy: Anatomy) -> list[str]:
        return targets(self, anatomy, inside=self.method in ONE_SHOT, alone=self.method in MOVING)

    def _soften(self, context: Context) -> None:
        if self.window.end == self.window.start:
            hint = "let it end later: scores are learned inside of the window"
            raise self.error("an empty window, in which nothing moves", option="end", hint=hint)
        self.scored = [soften(context.model, name, self.id, MovementMask) for name in self.targets]
        for mask in self.scored:
            mask.speed = self.options.speed if self.method == "soft-movement" else 1.0
        context.train_also(self, nn.ParameterList([mask.parameter for mask in self.scored]))

    def _complete(self, context: Context) -> None:
        """The last threshold; late when the step at the window's end was skipped."""
        if not self.complete:
            self._prune(context, final_sparsity(self.options))
            self.complete = True

    def _prune(self, context: Context, sparsity: float | None) -> None:
        """Choose what stays.

        Args:
            sparsity: that is due; None with soft-movement, which has a threshold.
        """
        if sparsity is not None and sparsity == self.reached:
            return
        if self.scored:
            for mask, keep in zip(self.scored, self._moved(context, sparsity), strict=True):
                mask.keep.copy_(keep)
        else:
            # What nothing will change any more needs no mask to hold it.
            held = context.trains or not context.is_last(self)
            for name, keep in self._masks(context, sparsity):
                if held:
                    context.masks.set(self.id, name, keep)
                else:
                    context.model.get_parameter(name).detach().mul_(keep)
        if sparsity is None:
            kept = [mask.keep for mask in self.scored]
            sparsity = 1 - sum(int(keep.sum()) for keep in kept) / sum(keep.numel() for keep in kept)
        self.reached = sparsity

    def _moved(self, context: Context, sparsity: float | None) -> list[Tensor]:
        scores = [mask.scores.detach() for mask in self.scored]
        if sparsity is None:
            return [soft_movement_mask(each, self.options.threshold) for each in scores]
        return self._chosen(scores, sparsity, [_leaving(context, name) for name in self.parameters])

    def _masks(self, context: Context, sparsity: float | None) -> Iterator[tuple[str, Tensor]]:
        """The parameters to prune, each with a mask in its own shape."""
        assert sparsity is not None
        if self.method in ONE_SHOT:
            for name, keep in self._looked_at(context, sparsity):
                yield f"{name}.weight", keep
            return
        scores = [rows(context.model, name).detach().abs() for name in self.parameters]
        if self.options.pattern:
            keeps = [pattern_mask(each, *pattern_sizes(self.options.pattern)) for each in scores]
        else:
            keeps = self._chosen(scores, sparsity, [_leaving(context, name) for name in self.parameters])
        for name, keep in zip(self.parameters, keeps, strict=True):
            yield name, own_shape(context.model, name, keep)

    def _chosen(
        self, scores: list[Tensor], sparsity: float, leaving: Sequence[Tensor | None] = ()
    ) -> list[Tensor]:
        """What stays of scores [out, in] under a threshold, in blocks if so asked.

        Args:
            leaving: what leaves with heads or neurons, and is no zero in the end: the share is of the rest.
        """
        scope, block = self.options.scope, self.options.block
        if block is None and any(gone is not None for gone in leaving):
            return among(scores, sparsity, scope, leaving)
        if block is None:
            return threshold_masks(scores, sparsity, scope)
        sizes = block_sizes(block)
        means = [block_means(each, *sizes) for each in scores]
        return [over_blocks(keep, *sizes) for keep in threshold_masks(means, sparsity, scope)]

    def _looked_at(self, context: Context, sparsity: float) -> Iterator[tuple[str, Tensor]]:
        pattern = pattern_sizes(self.options.pattern) if self.options.pattern else None
        shot = oneshot.OneShot(self.method, sparsity, pattern)
        examples = context.examples(self.options.rows)

        def leaving(module: nn.Module) -> Tensor | None:
            return _leaving_of(context, module.weight, is_transposed(module))

        try:
            yield from shot.masks(context.anatomy, self.targets, examples, leaving)
        except CookError as error:
            option = "rows" if "calibration" in error.message else None
            raise self.error(error.message, option=option, hint=error.hint) from error
        self.seen = {"tokens": shot.tokens}
        if self.method == "sparsegpt":
            self.seen["damping"] = shot.damping


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _leaving(context: Context, parameter: str) -> Tensor | None:
    """What of a weight, as `rows` gives it, will leave the model."""
    owner: Any = context.model.get_submodule(_module(parameter))
    return _leaving_of(context, getattr(owner, parameter.rpartition(".")[2]), is_transposed(owner))


def _leaving_of(context: Context, weight: Any, transposed: bool) -> Tensor | None:
    gone = context.masks.leaving(weight)
    return gone.t() if gone is not None and transposed else gone
