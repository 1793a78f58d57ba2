"""Placeholder for a dropped layer; the other layers keep their numbers until the model is finished."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Skipped(nn.Module):
    """Returns its input unchanged.

    Args:
        layer: the replaced layer; its plain attributes are copied, since models read them.
        pair: whether layers of its kind return their states as a pair.
        watched: whether the layer's hooks run here, because the layer will be restored.
    """

    def __init__(self, layer: nn.Module, *, pair: bool = False, watched: bool = False):
        super().__init__()
        attributes = {
            name: value for name, value in vars(layer).items() if isinstance(value, (str, int, float))
        }
        vars(self).update({name: value for name, value in attributes.items() if name != "training"})
        if watched:
            vars(self).update({name: vars(layer)[name] for name in vars(self) if name.startswith("_forward")})
        self.pair = pair
        self.train(layer.training)

    def forward(self, states: Tensor | None = None, *_: Any, **named: Any) -> Any:
        found = named["hidden_states"] if states is None else states
        return (found, None) if self.pair else found
