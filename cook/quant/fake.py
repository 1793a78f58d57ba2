"""Fake quantisation: rounded values in the forward pass, a straight-through gradient in the backward.

The rounding is the one that `IntLinear` does, so that folding changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cook.model.nn.integer import limit, quantize_activation, stored_width


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
        return stored_width(self.bits) if self.enabled else None

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

    In training, while it is enabled and not frozen, it collects the largest magnitude of all forwards of an
    update; `update` then moves the average once, so that micro-batches and processes change nothing. The
    average starts with the first magnitude that is not zero. Before the first update inputs pass through
    unrounded.

    Args:
        bits: of the integers.
        decay: of the average, an update.
    """

    largest: Tensor

    def __init__(self, bits: int, decay: float = 0.99, device: torch.device | None = None):
        super().__init__()
        self.bits, self.decay = bits, decay
        self.enabled = self.frozen = False
        # Known on the host, so that no forward waits for the device to say it.
        self.observed = False
        self.pending: Tensor | None = None
        """The largest magnitude since the last update; None when no forward was observed."""
        self.register_buffer("largest", torch.zeros((), dtype=torch.float32, device=device))

    @property
    def scale(self) -> Tensor:
        """Of one step; 1 while only zeros were seen, so that dividing by it is always defined."""
        return torch.where(self.largest > 0, self.largest / limit(self.bits), 1.0)

    def observe(self, inputs: Tensor) -> None:
        """Collect the largest magnitude of `inputs` for the next update."""
        now = inputs.detach().abs().amax().float()
        self.pending = now if self.pending is None else torch.maximum(self.pending, now)

    def update(self, now: Tensor | None = None) -> None:
        """Move the average towards the largest magnitude of an update, if there was a forward.

        Args:
            now: that of all processes, a scalar; None takes what was collected here.
        """
        now = self.pending if now is None else now
        self.pending = None
        if now is not None:
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


def update_together(observers: Sequence[FakeQuantMoving], maximum: Callable[[Tensor], Tensor]) -> None:
    """Move the averages of all observers once, by what all processes have seen in this update.

    Args:
        observers: of one pass, the same in every process.
        maximum: the largest value over processes, entry by entry.
    """
    if not observers or all(each.frozen or not each.enabled for each in observers):
        return
    nothing = torch.full((), -1.0, device=observers[0].largest.device)
    seen = maximum(torch.stack([nothing if each.pending is None else each.pending for each in observers]))
    for each, now, ran in zip(observers, seen, (seen >= 0).tolist(), strict=True):
        each.update(now if ran else None)
