"""Statistics of the inputs of linear layers: sums over tokens, streamed, in float32 by default.

Data-dependent methods need no inputs, only such sums: squared norms to weigh inputs, the Gram matrix for
least squares. Batches are not kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cook.model.nn.linear import matrix
from cook.model.probe.alignment import IGNORED, predicts_next


class Statistic(ABC):
    """A sum over tokens.

    Args:
        width: of the inputs.
        device: where the inputs are.
        dtype: of the sum; float64 if float32 is not precise enough.

    Attributes:
        tokens: the number of tokens added.
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
        """Add inputs [tokens, width], of any float dtype."""
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


class OutputGram(Statistic):
    """The sum of (W x) (W x)^T over the tokens, [out, out], for a layer with fewer outputs than inputs.

    Args:
        module: the linear layer; its bias is ignored.

    Attributes:
        squares: the sum of all squared inputs, a scalar.
    """

    def __init__(
        self, module: nn.Module, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ):
        self._weight = matrix(module).detach()
        super().__init__(len(self._weight), device, dtype)
        self.squares = self.value.new_zeros(())

    @staticmethod
    def shape(width: int) -> tuple[int, ...]:
        return (width, width)

    def _add(self, inputs: Tensor) -> None:
        given = inputs @ self._weight.to(inputs.dtype).t()
        self.value.addmm_(given.t(), given)
        self.squares += inputs.square().sum()


def loss_shares(model: Any, batch: Mapping[str, Tensor], size: int, outputs: Any) -> Tensor:
    """The weight of each example's mean loss in the batch's loss: [size], with a sum of 1.

    Args:
        batch: with labels.
        size: number of examples.
        outputs: of the model for the batch.
    """
    labels = batch["labels"]
    if labels.ndim == 1:
        return torch.full((size,), 1 / size)
    # A decoder's label is that of the next token; ignored labels have no weight.
    shifted = labels[:, 1:] if predicts_next(model, outputs, labels) else labels
    counts = (shifted != IGNORED).sum(1).float()
    return counts.clamp_min(1) / counts.sum().clamp_min(1)
