"""Layer sharing: groups of layers have the same parameters (ALBERT, Lan et al. 2020).

From a trained model a group begins with the mean of its layers, or with one of them, and each layer may keep
a residual of low rank of its own (relaxed recursive transformers, Bae et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.nn import linear, surgery
from cook.model.nn.residual import Residual
from cook.model.nn.sharing import own
from cook.passes import Effect, Pass, register
from cook.share.groups import Group, grouped
from cook.share.specs import LayersSpec
from cook.share.start import distance, factors, started

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy


@register
class ShareLayers(LayersSpec, Pass):
    """Ties the parameters of layers before the optimizer is created; their gradients add up.

    Each layer keeps its own modules, so that a decoder's cache, hooks and layer numbers remain separate.
    """

    @property
    def rank(self) -> int:
        return int(self.options.residual)

    def settled(self, done: int) -> bool:
        """Layers share from the start."""
        return True

    def plan(self, anatomy: Anatomy) -> Effect:
        groups = self._groups(anatomy)
        saved = self._saved(anatomy.model, groups)
        matrices = [
            f"{name}.weight"
            for group in groups
            for layer in group.layers
            for name in group.names(layer)
            if own(surgery.get(anatomy.model, name)).get("weight", torch.empty(0)).ndim == 2
        ]
        part = {"all": "", "attention": "attention of ", "ffn": "FFN of "}[self.options.parts]
        layers = sum(len(group.layers) for group in groups)
        beside = f" with residuals of rank {self.rank}" if self.rank else ""
        return Effect(
            parameters=matrices,
            edits=[edit for group in groups for edit in group.edits(anatomy.model, self.rank)],
            note=f"{part}{layers} layers in {len(groups)} groups{beside}, {saved:,} parameters fewer: saves"
            " memory, not time",
        )

    def attach(self, context: Context) -> None:
        model, number = context.model, context.anatomy.layers.index
        groups = self._groups(context.anatomy)
        self.numbers = [[number(layer) for layer in group.layers] for group in groups]
        self.distances: dict[int, tuple[float, float]] = {}
        expected, before = self._saved(model, groups), _parameters(model)
        for group in groups:
            layers = [_tensors(model, group, layer) for layer in group.layers]
            start = started(layers, self.options.init)
            for edit in self._tie(model, group, start):
                context.edit(edit)
            for layer, was in zip(group.layers, layers, strict=True):
                near = start if not self.rank else self._fill(model, group, layer, was, start)
                self.distances[number(layer)] = distance(was, start), distance(was, near)
        self.saved = before - _parameters(model)
        self.check_measured("parameters saved", self.saved, expected)

    def facts(self, context: Context) -> dict[str, Any]:
        found = {
            "groups": self.numbers,
            "parts": self.options.parts,
            "init": self.options.init,
            "saved": self.saved,
            "note": f"{sum(map(len, self.numbers))} layers in {_several(len(self.numbers), 'group')},"
            f" {self.saved:,} parameters fewer; sharing saves memory, not time",
            "distance": {str(number): far for number, (far, _) in self.distances.items()},
        }
        if self.rank:
            left = {str(number): far for number, (_, far) in self.distances.items()}
            found |= {"residual": self.rank, "distance_with_residual": left}
        return found

    def _groups(self, anatomy: Anatomy) -> list[Group]:
        try:
            return grouped(anatomy, self.options.groups, self.options.parts)
        except CookError as error:
            raise self.error(error.message, option="groups", hint=error.hint) from error

    def _saved(self, model: nn.Module, groups: Sequence[Group]) -> int:
        """How many parameters fewer there will be.

        Raises:
            CookError: a matrix has no such rank, or the residuals are as large as what is saved.
        """
        for name in (full for group in groups for full in group.linears(model)):
            sizes = linear.shape(surgery.get(model, name))
            if self.rank > min(sizes):
                message = f"{name} is {sizes[0]} x {sizes[1]}, which is of no rank {self.rank}"
                raise self.error(message, option="residual", hint="take a smaller rank")
        saved = sum(group.saves(model, self.rank) for group in groups)
        if saved <= 0:
            message = f"with a residual of rank {self.rank} in each layer the model would be no smaller"
            raise self.error(message, option="residual", hint="take a smaller rank, or larger groups")
        return saved

    @torch.no_grad()
    def _tie(self, model: nn.Module, group: Group, start: Mapping[str, Tensor]) -> list[Edit]:
        """Let the first layer have what the group begins with, and the others the same parameters."""
        for key, parameter in group.parameters(model, group.layers[0]).items():
            parameter.copy_(start[key])
        edits = list(group.edits(model, self.rank))
        Blueprint(edits=edits).apply(model)
        return edits

    @torch.no_grad()
    def _fill(
        self,
        model: nn.Module,
        group: Group,
        layer: str,
        was: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Put into a layer's residuals what they can hold of its difference, and tell what it is near to."""
        near = dict(start)
        for name in group.modules:
            module = surgery.get(model, f"{layer}.{name}".rstrip("."))
            if not isinstance(module, Residual):
                continue
            key = f"{name}.weight"
            flipped = linear.is_transposed(module.shared)
            apart = was[key].to(torch.float32) - start[key].to(torch.float32)
            up, down = factors(apart.t() if flipped else apart, self.rank)
            module.up.weight.copy_(up)
            module.down.weight.copy_(down)
            added = (up @ down).t() if flipped else up @ down
            near[key] = start[key].to(torch.float32) + added
        return near


def _tensors(model: nn.Module, group: Group, layer: str) -> dict[str, Tensor]:
    """Copies of what a layer will share, by the names in it."""
    return {name: each.detach().clone() for name, each in group.parameters(model, layer).items()}


def _parameters(model: nn.Module) -> int:
    """How many numbers the parameters hold, shared ones counted once."""
    return sum(each.numel() for each in model.parameters())


def _several(count: int, one: str) -> str:
    return f"{count} {one}" + ("" if count == 1 else "s")
