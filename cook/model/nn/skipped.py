"""What stands where a layer was dropped, so that the numbers of the others stay until the model is done."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Skipped(nn.Module):
    """Gives on what it gets.

    Args:
        layer: that was here; what it says of itself in words and numbers stays, since models look at it.
        pair: whether layers of its kind give their states in a pair.
        watched: whether the layer's hooks fire here, since it will be back.
    """

    def __init__(self, layer: nn.Module, *, pair: bool = False, watched: bool = False):
        super().__init__()
        said = {name: value for name, value in vars(layer).items() if isinstance(value, (str, int, float))}
        vars(self).update({name: value for name, value in said.items() if name != "training"})
        if watched:
            vars(self).update({name: vars(layer)[name] for name in vars(self) if name.startswith("_forward")})
        self.pair = pair
        self.train(layer.training)

    def forward(self, states: Tensor | None = None, *_: Any, **named: Any) -> Any:
        found = named["hidden_states"] if states is None else states
        return (found, None) if self.pair else found
