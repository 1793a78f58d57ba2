"""What the inputs of linear layers are like: sums over tokens, streamed, in float32 unless told otherwise.

Methods that look at data need no inputs, only such sums: squared norms to weigh inputs, the Gram matrix for
whatever is least squares. A batch is added and forgotten.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Statistic(ABC):
    """A sum over tokens.

    Args:
        width: of the inputs.
        device: where the inputs are.
        dtype: that is summed in; float64 where float32 loses too much.

    Attributes:
        tokens: how many were added.
        value: the sum.
    """

    value: Tensor

    def __init__(self, width: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32):
        self.tokens = 0
        self.value = torch.zeros(self.shape(width), dtype=dtype, device=device)

    @staticmethod
    @abstractmethod
    def shape(width: int) -> tuple[int, ...]:
        """The shape of the sum."""

    def add(self, inputs: Tensor) -> None:
        """Add inputs [tokens, width], of any float type."""
        self.tokens += len(inputs)
        self._add(inputs.to(self.value.dtype))

    @abstractmethod
    def _add(self, inputs: Tensor) -> None: ...


class SquaredNorms(Statistic):
    """The squared norm of each input over the tokens, [width]: the diagonal of the Gram matrix."""

    @staticmethod
    def shape(width: int) -> tuple[int, ...]:
        return (width,)

    def _add(self, inputs: Tensor) -> None:
        self.value += inputs.square().sum(0)


class Gram(Statistic):
    """The sum of x x^T over the tokens, [width, width]."""

    @staticmethod
    def shape(width: int) -> tuple[int, ...]:
        return (width, width)

    def _add(self, inputs: Tensor) -> None:
        self.value.addmm_(inputs.t(), inputs)
