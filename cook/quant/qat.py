"""Quantisation-aware training: linear layers learn to live with rounded weights and activations.

Symmetric, a scale an output row for weights; a scale a token, or one moving average, for activations
(Jacob et al. 2018, with the narrow range of Krishnamoorthi 2018). At finish weights become integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from cook.model.arch.targets import left_out, select
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.nn import sharing, surgery
from cook.model.nn.integer import IntLinear, stored_width
from cook.model.nn.linear import shape
from cook.model.nn.transformed import TransformedLinear, restore, transform
from cook.passes import Effect, Pass, register
from cook.quant.fake import FakeQuantMoving, FakeQuantToken, FakeQuantWeight, update_together
from cook.quant.specs import QatSpec

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy

Rounding = FakeQuantWeight | FakeQuantToken | FakeQuantMoving


def bits_of(width: str) -> int:
    """8 for `int8`."""
    return int(width.removeprefix("int"))


@register
class QuantAwareTraining(QatSpec, Pass):
    """Trains linear layers with fake-quantised weights and inputs; converts them to integers at the end."""

    def plan(self, anatomy: Anatomy) -> Effect:
        layers = self._layers(anatomy)
        edits = [self._edit(name, anatomy.model.get_submodule(name)) for name in layers]
        note = f"{len(layers)} linear layers, weights {self.options.weights}"
        if self.options.activations:
            note += f", inputs {self.options.activations} ({self.options.observer})"
        if missed := self._missed(anatomy, layers):
            note += f"; {missed}"
        return Effect(
            parameters=[f"{name}.weight" for name in layers],
            edits=edits + _shared(anatomy.model, layers),
            note=note,
        )

    def attach(self, context: Context) -> None:
        self.layers = self._layers(context.anatomy)
        self.missed = self._missed(context.anatomy, self.layers)
        self.bits = bits_of(self.options.weights)
        self.enabled = False
        self.rounding: list[Rounding] = []
        moving = self.options.activations and self.options.observer == "moving"
        if moving and not context.trains:
            raise self.error(
                "a moving average needs training",
                option="observer",
                hint="use `observer: token` without training",
            )
        self.frozen_from = (
            context.schedule_step(self.options.freeze, self, "freeze") if moving else context.total_steps
        )
        if moving and self.frozen_from <= self.window.start:
            raise self.error(
                f"freezes at step {self.frozen_from}, before anything was observed: the window starts at "
                f"step {self.window.start}",
                option="freeze",
                hint="freeze later, or start earlier",
            )
        for name in self.layers:
            layer = transform(context.model, name)
            self.rounding.append(weight := FakeQuantWeight(self.bits))
            layer.add_weight_transform(self.id, weight)
            if self.options.activations:
                self.rounding.append(inputs := self._input_transform(layer))
                layer.add_input_transform(self.id, inputs)
        if not context.trains:
            self._enable(True)

    def before_step(self, context: Context) -> None:
        # There is no `end`: a layer that learned to be rounded stays so.
        self._enable(context.step >= self.window.start)
        for each in self._moving():
            each.frozen = context.step >= self.frozen_from
            each.pending = None  # of a step that was skipped, as fp16 does with numbers that are not finite

    def after_step(self, context: Context) -> None:
        update_together(self._moving(), context.maximum)

    def _moving(self) -> list[FakeQuantMoving]:
        return [each for each in self.rounding if isinstance(each, FakeQuantMoving)]

    def settled(self, done: int) -> bool:
        """There is no end to wait for: one step in the window, and the model is what it will be stored as."""
        return done > self.window.start

    def finish(self, context: Context) -> None:
        # Layers that another pass took out are gone with what was done to them.
        self.layers = [name for name in self.layers if surgery.has(context.model, name)]
        shared = _shared(context.model, self.layers)
        for name in self.layers:
            layer = context.model.get_submodule(name)
            assert isinstance(layer, TransformedLinear)
            edit = self._edit(name, layer)
            moving = layer.input_transform(self.id) if self.options.activations else None
            if isinstance(moving, FakeQuantMoving) and not moving.observed:
                raise self.error(
                    f"{name} never ran in training mode in the window: the range of its inputs is unknown",
                    option="observer",
                    hint="call session.module.train() before the loop and session.after_step() after each"
                    " optimizer step; exclude what does not run; or observer: token",
                )
            integer = IntLinear.from_linear(
                layer,
                self.bits,
                self._activation(),
                input_scale=getattr(moving, "scale", None),
            )
            layer.remove(self.id)
            restore(context.model, name)
            surgery.replace(context.model, name, integer)
            context.edit(edit)
        # Equal weights were rounded alike: one copy of the integers is enough.
        Blueprint(edits=shared).apply(context.model)
        for edit in shared:
            context.edit(edit)

    def facts(self, context: Context) -> dict[str, Any]:
        stored = stored_width(self.bits)
        for name in self.layers:
            layer = surgery.get(context.model, name)
            bits = layer.bits if isinstance(layer, IntLinear) else None
            self.check_measured(f"bits of {name}", bits, stored)
        found: dict[str, Any] = {"layers": len(self.layers), "weight_bits": self.bits}
        if stored != self.bits:
            found["stored_bits"] = stored
        if self.options.activations:
            found["activation_bits"] = bits_of(self.options.activations)
        note = f"{len(self.layers)} linear layers stored as int{stored}"
        if stored != self.bits:
            note = (
                f"{len(self.layers)} linear layers rounded to {self.options.weights}, stored as int{stored}"
            )
        if self.options.activations:
            how = {"token": "by token", "moving": "by a moving maximum"}
            note += f", inputs rounded to {self.options.activations} {how.get(self.options.observer, '')}"
        found["note"] = note.rstrip() + (f"; {self.missed}" if self.missed else "")
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"enabled": self.enabled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._enable(state["enabled"])

    def _missed(self, anatomy: Anatomy, layers: Sequence[str]) -> str:
        """What the selection holds and stays as it is, in words; nothing where all of it is rounded."""
        return left_out(anatomy, self.options.include, self.options.exclude, layers)

    def _layers(self, anatomy: Anatomy) -> list[str]:
        layers = select(anatomy, self.options.include, self.options.exclude, replaced=True)
        for name in layers:
            layer = anatomy.model.get_submodule(name)
            claimed = isinstance(layer, TransformedLinear) and layer.quantised
            if claimed or isinstance(layer, IntLinear):
                raise self.error(
                    f"{name} is quantised by an earlier pass", hint="give one of the two passes an `exclude`"
                )
        return layers

    def _input_transform(self, layer: TransformedLinear) -> FakeQuantToken | FakeQuantMoving:
        assert self.options.activations is not None
        bits = bits_of(self.options.activations)
        if self.options.observer == "token":
            return FakeQuantToken(bits)
        return FakeQuantMoving(bits, self.options.decay, layer.weight.device)

    def _enable(self, on: bool) -> None:
        self.enabled = on
        for each in self.rounding:
            each.enabled = on

    def _activation(self) -> dict[str, Any] | None:
        """What `IntLinear` does with its inputs."""
        if not self.options.activations:
            return None
        kind = {"token": "token", "moving": "static"}[self.options.observer]
        return {"bits": bits_of(self.options.activations), "kind": kind}

    def _edit(self, name: str, layer: Any) -> Edit:
        out, columns = shape(layer)
        options = {
            "bits": stored_width(bits_of(self.options.weights)),
            "activation": self._activation(),
            "in": columns,
            "out": out,
            "bias": getattr(layer, "bias", None) is not None,
        }
        return Edit("integer", name, options)


def _shared(model: nn.Module, names: Sequence[str]) -> list[Edit]:
    """What lets layers share their integers that share their weights now."""
    return [Edit("share", name, {"of": of}) for name, of in sharing.pairs(model, names)]
