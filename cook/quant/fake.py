"""Fake quantisation: rounded values in the forward pass, a straight-through gradient in the backward.

The rounding is the one that `IntLinear` does, so that folding changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cook.model.integer import limit, quantize_activation


class RoundRows(torch.autograd.Function):
    """Round [..., n] with a scale for each row of n that its largest magnitude sets.

    Nothing lies outside of the range, so the straight-through gradient is the identity and no tensor
    is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, bits: int) -> Tensor:
        return quantize_activation(values, bits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class RoundClipped(torch.autograd.Function):
    """Round with one given scale; the gradient passes inside of the range and is zero outside."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bits: int, scale: Tensor) -> Tensor:
        ctx.save_for_backward(values.abs() <= scale * limit(bits))
        return quantize_activation(values, bits, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None


class FakeQuantWeight(nn.Module):
    """A weight transform [out, in] -> [out, in]: integers of `bits` with a scale a row, once enabled."""

    order: ClassVar[int] = 1

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        self.enabled = False

    @property
    def stored_bits(self) -> int | None:
        """The width that the weight is stored with when it is folded now."""
        return self.bits if self.enabled else None

    def forward(self, weight: Tensor) -> Tensor:
        return RoundRows.apply(weight, self.bits) if self.enabled else weight


class FakeQuantToken(nn.Module):
    """An input transform [..., in]: a scale a token, found anew in each forward."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        self.enabled = False

    def forward(self, inputs: Tensor) -> Tensor:
        return RoundRows.apply(inputs, self.bits) if self.enabled else inputs


def _in_backward() -> bool:
    """Whether this forward is one that gradient checkpointing computes again."""
    return torch._C._current_graph_task_id() != -1


class FakeQuantMoving(nn.Module):
    """An input transform [..., in]: one scale, from a moving average of the largest magnitude.

    While it observes (in training, enabled, not frozen) the average follows `decay`, from the first
    magnitude that is not zero; before any observation inputs pass through untouched.
    """

    largest: Tensor

    def __init__(self, bits: int, decay: float = 0.99, device: torch.device | None = None):
        super().__init__()
        self.bits, self.decay = bits, decay
        self.enabled = self.frozen = False
        # Known on the host, so that no forward waits for the device to say it.
        self.observed = False
        self.register_buffer("largest", torch.zeros((), dtype=torch.float32, device=device))

    @property
    def scale(self) -> Tensor:
        """Of one step; 1 while only zeros were seen, so that dividing by it is always defined."""
        return torch.where(self.largest > 0, self.largest / limit(self.bits), 1.0)

    def observe(self, inputs: Tensor) -> None:
        """Move the average towards the largest magnitude of `inputs`."""
        now = inputs.detach().abs().amax().float()
        average = self.decay * self.largest + (1 - self.decay) * now
        self.largest.copy_(torch.where(self.largest > 0, average, now))
        self.observed = True

    def forward(self, inputs: Tensor) -> Tensor:
        if self.enabled and self.training and not self.frozen and not _in_backward():
            self.observe(inputs)
        if not (self.enabled and self.observed):
            return inputs
        return RoundClipped.apply(inputs, self.bits, self.scale)

    def _load_from_state_dict(self, state: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self.observed = bool(self.largest > 0)
