"""Movement pruning: weights that training moves towards zero go (Sanh et al. 2020).

Each weight has a score that the optimizer learns beside it. The mask's gradient is handed to the score
straight-through, so that plain gradient descent at rate `r` gives `S -= r * W * dL/dW'`, where W' is the
masked weight: a score falls while its weight moves to zero. What is masked stays in the layer and comes back
when its score has risen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cook.model.nn.transformed import SoftMask


class ScoredWeight(torch.autograd.Function):
    """`weight * keep` forward; backward `dL/dW' * keep` for the weight and `dL/dW' * weight` for its score.

    The weight's gradient is that of what the forward computes, the score's is straight-through: as if the
    mask were the score itself (section 4, equations 2 and 3).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(weight, keep)
        ctx.scores = scores.dtype
        return weight * keep

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, keep = ctx.saved_tensors
        return gradient * keep, (gradient * weight).to(ctx.scores), None


def soft_movement_mask(scores: Tensor, threshold: float) -> Tensor:
    """What soft movement pruning keeps: where `sigmoid(S) > threshold`; bool, in the scores' shape."""
    return scores.detach().sigmoid() > threshold


def soft_movement_penalty(scores: list[Tensor]) -> Tensor:
    """`mean(sigmoid(S))` over all scores together, which drives them down: a scalar from 0 to 1."""
    together = torch.stack([each.sigmoid().sum() for each in scores]).sum()
    return together / sum(each.numel() for each in scores)


class MovementMask(SoftMask):
    """A soft mask that teaches scores [out, in], which begin at zero, while `learning`.

    Attributes:
        parameter: what is trained; the scores are it times `speed`.
        speed: how many times the learning rate scores learn with, under any optimizer: Adam moves all that
            it trains by about that rate, which is too little for scores that have a threshold to reach.
        learning: whether gradients go to the scores.
    """

    def __init__(self, out: int, columns: int, device: torch.device | None = None):
        super().__init__(out, columns, device)
        # In a tuple: it is trained with the passes' own modules and never becomes part of the model.
        self._parameter = (nn.Parameter(torch.zeros(out, columns, device=device)),)
        self.speed = 1.0
        self.learning = False

    @property
    def parameter(self) -> nn.Parameter:
        return self._parameter[0]

    @property
    def scores(self) -> Tensor:
        """The scores, whose gradient the parameter gets as it is."""
        return self.parameter + (self.speed - 1) * self.parameter.detach()

    def select(self, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        super().select(out=out, in_=in_)
        scores = self.parameter.detach()
        for axis, index in ((0, out), (1, in_)):
            if index is not None:
                scores = scores.index_select(axis, index.to(scores.device))
        self._parameter = (nn.Parameter(scores),)

    def forward(self, weight: Tensor) -> Tensor:
        if not self.learning:
            return weight * self.keep
        # Only the gradient of the scores is of use here, and it is the parameter's.
        kept: Tensor = ScoredWeight.apply(weight, self.parameter, self.keep)
        return kept
