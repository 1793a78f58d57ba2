"""LayerDrop: whole layers are left out at random while the model trains, and any depth can be cut from it.

A. Fan, E. Grave, A. Joulin, "Reducing Transformer Depth on Demand with Structured Dropout", ICLR 2020.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cook.model.edits.depth import beyond, droppable, matrices
from cook.passes import Effect, Pass, register
from cook.prune.specs.passes import LayerDropSpec

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy


def dropped(layers: int, rate: float, *key: int) -> list[int]:
    """The numbers of the layers that one forward leaves out, each with probability `rate` for itself.

    All of them can be among these, as in the paper.

    Args:
        layers: how many there are.
        rate: from 0 to 1.
        key: says which forward this is; the same key gives the same numbers, in every process and whatever
            was drawn elsewhere.
    """
    source = random.Random(repr(key))  # a text is hashed, so that near keys have nothing in common
    return [number for number in range(layers) if source.random() < rate]


@register
class PruneLayerDrop(LayerDropSpec, Pass):
    """Selects the layers that a training forward skips; the model itself is not changed.

    Layers are skipped only in forwards of the session while the model is in train mode. A skipped layer is
    not computed, and its parameters get zero gradients.
    """

    def settled(self, done: int) -> bool:
        """The model is whole at any time, and never smaller."""
        return True

    def plan(self, anatomy: Anatomy) -> Effect:
        layers = self._layers(anatomy)
        return Effect(
            parameters=matrices(anatomy.model, layers),
            skips=frozenset(layers),
            note=f"each of {len(layers)} layers is left out of {self.options.rate:.4g} of all forwards",
        )

    def attach(self, context: Context) -> None:
        self.layers = self._layers(context.anatomy)
        context.may_skip(self, self.layers)
        self.forwards = self.gone = self.forward = 0

    def before_step(self, context: Context) -> None:
        self.forward = 0

    def skipped_layers(self, context: Context) -> Sequence[str]:
        numbers = dropped(len(self.layers), self.options.rate, self.options.seed, context.step, self.forward)
        self.forward += 1
        self.forwards += 1
        self.gone += len(numbers)
        return [self.layers[number] for number in numbers]

    def facts(self, context: Context) -> dict[str, Any]:
        share = self.gone / max(1, self.forwards * len(self.layers))
        note = f"{100 * share:.1f} % of the runs through {len(self.layers)} layers left out in training"
        return {
            "note": note,
            "rate": float(self.options.rate),
            "dropped": share,
            "layers": len(self.layers),
            "forwards": self.forwards,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"forwards": self.forwards, "gone": self.gone}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.forwards, self.gone = state["forwards"], state["gone"]

    def _layers(self, anatomy: Anatomy) -> list[str]:
        """The layers that can be left out: those that there are, but for `keep`."""
        every, live = droppable(anatomy), set(anatomy.live)
        if message := beyond(self.options.keep, len(every)):
            raise self.error(message, option="keep")
        kept = {every[number] for number in self.options.keep}
        found = [layer for layer in every if layer in live - kept]
        if not found:
            raise self.error("no layer could be left out", option="keep", hint="name fewer, or none")
        return found
