"""Gates at work: what layers, heads, neurons and dimensions give is multiplied in every forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cook.model.arch.units import UnitGroup, axis_of
from cook.model.arch.width import narrowing
from cook.model.nn import surgery
from cook.model.nn.hooks import Hooks
from cook.prune.structure.gates import Gates, hard_concrete, uniform


class Gating:
    """The gates of a model, drawn once a forward; layers that are computed again meet the same ones.

    A layer's gate goes from what comes in, at 0, to what the layer gives, at 1. A unit's is multiplied with
    what the unit gives. Those of the residual stream are multiplied with all that writes to it, and its norms
    count dimensions as much as they are open.

    Args:
        gates: layers first, then each of `units`, then `stream`.
        layers: names of the gated layers.
        units: heads and neurons with gates.
        stream: the residual stream, if it has gates.
        seed: of what is drawn: with the step and the forward's number in it, the same in all processes.

    Attributes:
        learning: whether gates act: drawn in training, what they are by now in evaluations.
        step: of the run.
        passed: the numbers of layers that are passed by when gates no longer act.
        open: which dimensions of the stream are not shut then, [width]; None for all.
    """

    def __init__(
        self,
        gates: Gates,
        layers: Sequence[str],
        units: Sequence[UnitGroup],
        stream: UnitGroup | None,
        seed: int,
    ):
        self.gates, self.layers, self.units, self.seed = gates, list(layers), list(units), seed
        self.stream = stream
        self.open: Tensor | None = None
        self.learning = False
        self.passed: set[int] = set()
        self._values: list[Tensor] | None = None
        self.at(0)

    def at(self, step: int) -> None:
        """A step begins; its forwards are counted from 0."""
        self.step, self._forwards = step, 0

    def install(self, model: nn.Module, hooks: Hooks) -> None:
        """Put hooks on the model, its gated layers, and what reads its gated units."""
        hooks.forward_pre(model, lambda *_: self._draw(model))
        for number, layer in enumerate(self.layers):
            hooks.forward(model.get_submodule(layer), self._mixing(number), named=True)
        for number, each in enumerate(self.units, start=1):
            for part in each.outputs:
                hooks.forward_pre(model.get_submodule(part.module), self._multiplying(number))
        if self.stream is not None:
            narrowing(model, self.stream, hooks, self._width)

    def _width(self) -> Tensor | None:
        return self.open if self._values is None else self._values[-1]

    def _draw(self, model: nn.Module) -> None:
        self._values = None
        if self.learning:
            loga, noise = self.gates.loga, None
            if model.training:
                noise = uniform(len(loga), self.seed, self.step, self._forwards).to(loga)
                self._forwards += 1
            self._values = self.gates.split(hard_concrete(loga, noise))

    def _mixing(self, number: int) -> Any:
        def hook(_: nn.Module, inputs: Any, named: Mapping[str, Any], output: Any) -> Any:
            if self._values is None and number not in self.passed:
                return None
            found = output if isinstance(output, Tensor) else output[0]
            given = (inputs[0] if inputs else named["hidden_states"]).to(found.dtype)
            # A layer that is passed by still takes part, or DDP would wait for its gradients.
            gate = found.new_zeros(()) if self._values is None else self._values[0][number].to(found.dtype)
            # Exactly what comes in at 0, and exactly what the layer gives at 1.
            mixed = torch.lerp(given, found, gate)
            return mixed if isinstance(output, Tensor) else (mixed, *output[1:])

        return hook

    def _multiplying(self, number: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if self._values is None:
                return None
            gate = self._values[number].to(inputs[0].dtype)
            return (inputs[0].unflatten(-1, (len(gate), -1)) * gate[:, None]).flatten(-2), *inputs[1:]

        return hook


@torch.no_grad()
def fold(model: nn.Module, units: UnitGroup, gates: Tensor) -> None:
    """Multiply what reads units with their gates, so that these can be left out.

    Args:
        gates: [units.count].
    """
    whole = {id(surgery.get(model, part.module).get_parameter("weight")): part for part in units.outputs}
    for part in whole.values():  # layers that share a weight have it once
        module: Any = surgery.get(model, part.module)
        factor = gates.repeat_interleave(part.spans[0][1]).to(module.weight)
        module.weight.mul_(factor if axis_of(module, "in") == 1 else factor[:, None])
