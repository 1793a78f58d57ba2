"""Unstructured magnitude pruning: the weights nearest to zero become zero (Han et al. 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from cook.model.linear import is_linear, weight_count
from cook.model.masks import lowest
from cook.model.targets import select
from cook.passes import MOMENT, SELECTION, WINDOW, Effect, Pass, register
from cook.prune.schedule import sparsity_at

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy
    from cook.session import Session


def magnitude_masks(weights: Sequence[Tensor], sparsity: float, scope: str = "global") -> list[Tensor]:
    """Which weights to keep when the share `sparsity` of the smallest magnitudes goes.

    Args:
        weights: tensors of any shapes.
        sparsity: 0 to 1; exactly `round(sparsity * n)` weights are dropped, ties in order.
        scope: `global`, one threshold for all tensors together, or `layer`, one for each.

    Returns:
        A bool mask for each tensor, True where kept.
    """
    scores = [weight.detach().abs() for weight in weights]
    if scope == "layer":
        return [~lowest(score, round(sparsity * score.numel())) for score in scores]
    if scope != "global":
        raise ValueError(f"no scope {scope!r}; there are global and layer")
    together = torch.cat([score.flatten() for score in scores])
    keep = ~lowest(together, round(sparsity * together.numel()))
    parts = keep.split([score.numel() for score in scores])
    return [part.view_as(score) for part, score in zip(parts, scores, strict=True)]


def has_matrix(module: nn.Module) -> bool:
    """Linear layers and embeddings: what has a weight matrix to prune."""
    return is_linear(module) or isinstance(module, nn.Embedding)


@register
class PruneWeights(Pass):
    """Moves a threshold over its window and holds what falls below it at exactly zero."""

    name = "prune.weights"
    summary = "set the smallest weights to zero, under a schedule, and keep them there"
    phase = "weights"
    options: ClassVar[dict[str, Any]] = {
        "sparsity": {
            "type": "number",
            "minimum": 0,
            "exclusiveMaximum": 1,
            "description": "share of the targets' weights that are zero at the end",
        },
        "scope": {
            "enum": ["global", "layer"],
            "default": "global",
            "description": "one threshold for all targets together, or one for each",
        },
        "schedule": {
            "enum": ["cubic", "linear", "constant"],
            "default": "cubic",
            "description": "how sparsity grows from the start of the window to its end",
        },
        "every": {
            **MOMENT,
            "default": None,
            "type": ["string", "integer", "null"],
            "description": "how often the threshold moves; 1 % of the window when left out",
        },
        **SELECTION,
        **WINDOW,
        "end": {**WINDOW["end"], "default": "70%"},
    }
    required = ("sparsity",)
    examples = ({"sparsity": 0.5}, {"sparsity": 0.6, "scope": "layer", "schedule": "linear", "every": 2})

    def plan(self, anatomy: Anatomy) -> Effect:
        parameters = self._parameters(anatomy)
        modules = [anatomy.model.get_submodule(name.removesuffix(".weight")) for name in parameters]
        sizes = [weight_count(module) for module in modules]
        whole = sum(sizes)
        together = [whole] if self.given["scope"] == "global" else sizes
        return Effect(
            parameters=parameters,
            zeros=sum(round(self.given["sparsity"] * size) for size in together),
            note=f"{self.given['sparsity']:.1%} of {whole:,} weights in {len(parameters)} matrices to zero",
        )

    def attach(self, session: Session) -> None:
        self.parameters = self._parameters(session.anatomy)
        width = self.window.end - self.window.start
        every = self.given["every"]
        self.every = session.moment(every, self, "every") if every is not None else round(width / 100)
        self.every = max(1, self.every)
        self.reached = 0.0
        if not session.trains:
            self._prune(session, self.given["sparsity"])

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
        session.masks.drop(self.id)

    def facts(self, session: Session) -> dict[str, Any]:
        weights = [session.model.get_parameter(name) for name in self.parameters]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        whole = sum(weight.numel() for weight in weights)
        return {"zeros": zeros, "of": whole, "sparsity": zeros / whole, "asked": self.given["sparsity"]}

    def status(self) -> str:
        return f"{self.reached:.0%} zero"

    def state_dict(self) -> dict[str, Any]:
        return {"reached": self.reached}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reached = state["reached"]

    def _parameters(self, anatomy: Anatomy) -> list[str]:
        what = "linear layer or embedding"
        modules = select(anatomy, self.given["include"], self.given["exclude"], kind=has_matrix, what=what)
        # A matrix that is tied under two names is pruned once.
        named: dict[int, str] = {}
        for name in modules:
            named.setdefault(id(anatomy.model.get_submodule(name).weight), f"{name}.weight")
        return list(named.values())

    def _prune(self, session: Session, sparsity: float) -> None:
        if sparsity == self.reached:
            return
        weights = [session.model.get_parameter(name) for name in self.parameters]
        for name, keep in zip(
            self.parameters, magnitude_masks(weights, sparsity, self.given["scope"]), strict=True
        ):
            session.masks.set(self.id, name, keep)
        self.reached = sparsity

    def _complete(self, session: Session) -> None:
        """The last threshold; late when the step at the window's end was skipped."""
        self._prune(session, self.given["sparsity"])
