"""Magnitude pruning: the weights nearest to zero become zero (Han et al. 2015).

Anywhere in the matrices, or in an N:M pattern, which sparse kernels can skip (Mishra et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from cook.model.linear import is_linear, is_transposed, matrix, weight_count
from cook.model.masks import lowest
from cook.model.targets import select
from cook.passes import MOMENT, SELECTION, WINDOW, Effect, Pass, register
from cook.prune.pattern import pattern_mask, pattern_sizes
from cook.prune.schedule import sparsity_at

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy
    from cook.model.masks import Masks
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
            "type": ["number", "null"],
            "default": None,
            "minimum": 0,
            "exclusiveMaximum": 1,
            "description": "share of the targets' weights that are zero at the end; needed without a pattern",
        },
        "pattern": {
            "type": ["string", "null"],
            "default": None,
            "pattern": "^[1-9][0-9]{0,3}:[1-9][0-9]{0,3}$",
            "description": "N:M, as 2:4: of every M weights along a layer's input the N largest stay, from"
            " the start of the window on; takes no scope, schedule or every",
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
    examples = (
        {"sparsity": 0.5},
        {"sparsity": 0.6, "scope": "layer", "schedule": "linear", "every": 2},
        {"pattern": "2:4"},
    )

    def check(self) -> None:
        pattern, sparsity = self.given["pattern"], self.given["sparsity"]
        if pattern is None:
            if sparsity is None:
                hint = "write sparsity: 0.5, or pattern: 2:4"
                raise self.error("missing; expected a sparsity or a pattern", option="sparsity", hint=hint)
            return
        keep, group = pattern_sizes(pattern)
        if keep >= group:
            message = f"{pattern} keeps every weight; expected N:M with N below M"
            raise self.error(message, option="pattern", hint="2:4 keeps two of four")
        if sparsity is not None and abs(sparsity - self._final()) > 1e-6:
            message = f"found {sparsity:g}, but the pattern {pattern} is a sparsity of {self._final():g}"
            raise self.error(message, option="sparsity", hint="give one of the two")
        for option in ("scope", "schedule", "every"):
            if self.given[option] != self.options[option]["default"]:
                message = f"means nothing with the pattern {pattern}, which is laid at once at the start"
                raise self.error(message, option=option, hint="leave it out")

    def plan(self, anatomy: Anatomy) -> Effect:
        parameters = self._parameters(anatomy)
        sizes = [weight_count(_module(anatomy.model, name)) for name in parameters]
        whole, pattern = sum(sizes), self.given["pattern"]
        together = [whole] if self.given["scope"] == "global" else sizes
        of = f"of {whole:,} weights in {len(parameters)} matrices"
        group = pattern_sizes(pattern)[1] if pattern else 1
        return Effect(
            parameters=parameters,
            groups={name.removesuffix(".weight"): group for name in parameters} if pattern else {},
            zeros=sum(round(self._final() * size) for size in together),
            note=f"{pattern} {of} kept" if pattern else f"{self._final():.1%} {of} to zero",
        )

    def attach(self, session: Session) -> None:
        self.parameters = self._parameters(session.anatomy)
        width = self.window.end - self.window.start
        every = self.given["every"]
        self.every = session.moment(every, self, "every") if every is not None else round(width / 100)
        self.every = max(1, self.every)
        self.reached = 0.0
        if not session.trains:
            self._complete(session)

    def before_step(self, session: Session) -> None:
        elapsed = session.step - self.window.start
        if session.step >= self.window.end:
            self._complete(session)
        elif elapsed >= 0 and elapsed % self.every == 0:
            # Under hard masks the largest of a group stay the largest: its pattern never changes.
            schedule = "constant" if self.given["pattern"] else self.given["schedule"]
            self._prune(session, sparsity_at(self.window.progress(session.step), self._final(), schedule))

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
        found = {"zeros": zeros, "of": whole, "sparsity": zeros / whole, "asked": self._final()}
        return {**found, "pattern": self.given["pattern"]} if self.given["pattern"] else found

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
        if self.given["pattern"]:
            self._check_widths({name: _module(anatomy.model, name) for name in named.values()})
        return list(named.values())

    def _check_widths(self, modules: Mapping[str, nn.Module]) -> None:
        _, group = pattern_sizes(self.given["pattern"])
        widths = {name.removesuffix(".weight"): _rows(each).shape[1] for name, each in modules.items()}
        uneven = [name for name, width in widths.items() if width % group]
        if uneven:
            message = f"{uneven[0]} has {widths[uneven[0]]} inputs, which is no multiple of {group}"
            others = f" (and {len(uneven) - 1} more)" if len(uneven) > 1 else ""
            shown = ", ".join([*uneven[:3], "..."] if len(uneven) > 3 else uneven)
            raise self.error(message + others, option="pattern", hint=f"leave out: exclude: [{shown}]")

    def _final(self) -> float:
        """The sparsity at the end of the window."""
        if self.given["pattern"]:
            keep, group = pattern_sizes(self.given["pattern"])
            return 1 - keep / group
        return float(self.given["sparsity"])

    def _masks(self, model: nn.Module, sparsity: float, masks: Masks) -> list[Tensor]:
        if self.given["pattern"]:
            sizes = pattern_sizes(self.given["pattern"])
            modules = [_module(model, name) for name in self.parameters]
            found = [pattern_mask(_rows(module), *sizes) for module in modules]
            return [
                mask.t().contiguous() if is_transposed(module) else mask
                for module, mask in zip(modules, found, strict=True)
            ]
        weights = [model.get_parameter(name) for name in self.parameters]
        gone = [masks.leaving(weight) for weight in weights]
        if all(each is None for each in gone):
            return magnitude_masks(weights, sparsity, self.given["scope"])
        # What leaves with a head or a neuron is no zero in the end: the share is of what stays.
        stays = [masks.staying(weight) for weight in weights]
        left = [weight[some] for weight, some in zip(weights, stays, strict=True)]
        found = magnitude_masks(left, sparsity, self.given["scope"])
        return [
            torch.ones_like(some).masked_scatter_(some, keep) for some, keep in zip(stays, found, strict=True)
        ]

    def _prune(self, session: Session, sparsity: float) -> None:
        if sparsity == self.reached:
            return
        masks = self._masks(session.model, sparsity, session.masks)
        for name, keep in zip(self.parameters, masks, strict=True):
            session.masks.set(self.id, name, keep)
        self.reached = sparsity

    def _complete(self, session: Session) -> None:
        """The last threshold; late when the step at the window's end was skipped."""
        self._prune(session, self._final())


def _module(model: nn.Module, parameter: str) -> nn.Module:
    return model.get_submodule(parameter.removesuffix(".weight"))


def _rows(module: Any) -> Tensor:
    """The weight [out, in] of a linear layer, or of an embedding, whose rows feed what comes after."""
    weight: Tensor = matrix(module) if is_linear(module) else module.weight
    return weight
