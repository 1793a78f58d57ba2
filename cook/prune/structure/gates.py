"""L0 gates: what each layer, head or neuron gives is multiplied with a number that learns to be 0 or 1.

C. Louizos, M. Welling, D. Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018:
the hard concrete distribution. M. Xia, Z. Zhong, D. Chen, "Structured Pruning Learns Compact and Accurate
Models", ACL 2022 (CoFi): gates of several sizes at once, and a Lagrangian that leads their cost to a goal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LOW, HIGH = -0.1, 1.1
"""What the concrete distribution is stretched to before it is cut to 0 and 1."""
TEMPERATURE = 2 / 3
OPEN = 3.0
"""Where all gates begin: one in a hundred is shut, and in evaluations all are open."""
BOUND = math.log(100)
"""How far a gate goes to either side: it can come back (as Louizos et al. bound it)."""
FIRST, SECOND = 3.0, 60.0
"""How much faster than the gates the two multipliers learn."""


def hard_concrete(loga: Tensor, noise: Tensor | None = None) -> Tensor:
    """Gates from 0 to 1, many of them exactly 0 or 1 (Louizos et al. 2018, equations 10 to 12).

    Args:
        loga: how open each is; from minus to plus infinity, any shape.
        noise: uniform from 0 to 1, in its shape. None for evaluations, which take
            `clamp(1.2 * sigmoid(loga) - 0.1, 0, 1)` (equation 13).
    """
    open_ = loga if noise is None else (noise.logit() + loga) / TEMPERATURE
    return (torch.sigmoid(open_) * (HIGH - LOW) + LOW).clamp(0, 1)


def probabilities(loga: Tensor) -> Tensor:
    """How probable it is that a gate is not 0 (Louizos et al. 2018, equation 12)."""
    return torch.sigmoid(loga - TEMPERATURE * math.log(-LOW / HIGH))


def uniform(count: int, *key: int) -> Tensor:
    """So many numbers between 0 and 1, float64; the same for the same key, whatever else is drawn."""
    drawn = np.random.default_rng(key).random(count)
    return torch.from_numpy(drawn).clamp(1e-6, 1 - 1e-6)


def lagrangian(over: Tensor, multipliers: Tensor) -> Tensor:
    """`l1 * over + l2 * over^2`, which gates descend and multipliers ascend (CoFi, section 2.3).

    Args:
        over: by how much the cost exceeds its target, a scalar.
        multipliers: l1 and l2, whose gradients come negated.
    """
    first, second = 2 * multipliers.detach() - multipliers
    return first * over + second * over.square()


class Gates(nn.Module):
    """All gates of a model in one vector, layers first, and the multipliers: what is trained.

    An optimizer such as Adam moves all that it trains by about the learning rate, which is too little for
    gates that have to close in some hundred steps: they learn `speed` times as fast, under any optimizer.

    Args:
        sizes: how many gates belong together: all layers, then each attention and FFN that has gates, then
            the residual stream.
    """

    def __init__(self, sizes: Sequence[int], *, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        self.sizes = list(sizes)
        self.speed = 1.0
        # Vectors: an optimizer that lets matrices decay leaves them.
        self.moved = nn.Parameter(torch.zeros(sum(sizes), dtype=dtype, device=device))
        self.pressed = nn.Parameter(torch.zeros(2, dtype=dtype, device=device))

    @property
    def loga(self) -> Tensor:
        """How open each gate is; its gradient is the parameter's as it is."""
        return OPEN + self.moved + (self.speed - 1) * self.moved.detach()

    @property
    def multipliers(self) -> Tensor:
        """l1 and l2; their gradients too."""
        speeds = self.speed * self.pressed.new_tensor([FIRST, SECOND])
        return self.pressed + (speeds - 1) * self.pressed.detach()

    def split(self, values: Tensor) -> list[Tensor]:
        """A vector over all gates by what belongs together."""
        return list(values.split(self.sizes))

    @torch.no_grad()
    def bound(self) -> None:
        """Bring back gates that went too far to come back by themselves."""
        self.moved.clamp_((-BOUND - OPEN) / self.speed, (BOUND - OPEN) / self.speed)
