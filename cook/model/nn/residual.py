"""A linear layer that shares its weight with other layers and adds a low-rank residual of its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.nn import linear, surgery
from cook.model.nn.composite import Spans
from cook.model.nn.lowrank import Factors


class Residual(Factors):
    """`shared(x) + up(down(x))` (S. Bae et al., "Relaxed Recursive Transformers", 2024).

    Args:
        shared: nn.Linear or Conv1D, kept as it is: its weight and bias may be shared with other layers.
        rank: rank of the residual, at least 1; the residual is initially zero.
    """

    def __init__(self, shared: nn.Module, rank: int):
        super().__init__()
        out, columns = linear.shape(shared)
        self.shared = shared
        self.down, self.up = _zeros(columns, rank, shared), _zeros(rank, out, shared)
        self.train(shared.training)

    @property
    def weight(self) -> nn.Parameter:
        """The shared weight: models read its dtype."""
        return self.shared.get_parameter("weight")

    def faces(self, axis: str, spans: Spans) -> Iterator[tuple[str, Spans]]:
        """Rows are in `shared` and `up`, columns in `shared` and `down` (`cook.model.nn.composite`)."""
        yield "shared", spans
        yield from super().faces(axis, spans)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.shared(inputs)
        added: Tensor = self.up(self.down(inputs))
        return found + added

    def select(self, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep the given rows and columns, as `surgery.select`."""
        surgery.select(self.shared, out=out, in_=in_)
        super().select(out=out, in_=in_)


def add_residual(model: nn.Module, name: str, rank: int) -> Residual:
    """Add a residual to linear layer `name`.

    Raises:
        CookError: the module is not a float linear layer, or the rank is not below both of its sizes.
    """
    module = surgery.get(model, name)
    if not linear.is_linear(module) or getattr(module, "packed", False):
        raise CookError(
            f"{name} should be a linear layer, it is a {type(module).__name__}", where="blueprint"
        )
    if not 1 <= rank <= min(linear.shape(module)):
        sizes = " x ".join(map(str, linear.shape(module)))
        raise CookError(f"rank {rank} does not fit {name}, which is {sizes}", where="blueprint")
    new = Residual(module, rank)
    surgery.replace(model, name, new)
    return new


def _zeros(columns: int, rows: int, like: nn.Module) -> nn.Linear:
    weight = like.get_parameter("weight")
    with torch.device("meta"):
        new = nn.Linear(columns, rows, bias=False)
    new.weight = nn.Parameter(torch.zeros(rows, columns, dtype=weight.dtype, device=weight.device))
    return new
