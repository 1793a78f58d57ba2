"""Low-rank linear layers of two factors, and fused linear layers split into their parts.

The rows of a low-rank matrix are in `up`, which has its bias, and its columns in `down`; both are plain
linear layers that any other pass finds by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.nn import linear, surgery
from cook.model.nn.composite import Spans


class Factors(nn.Module):
    """Replacement of a linear layer with its columns in `down` and its rows in `up`."""

    cook_composite: ClassVar[bool] = True
    down: nn.Linear
    up: nn.Linear

    def select(self, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep the given rows, which are those of `up`, and columns, which are those of `down`."""
        if out is not None:
            surgery.select(self.up, out=out)
        if in_ is not None:
            surgery.select(self.down, in_=in_)

    def faces(self, axis: str, spans: Spans) -> Iterator[tuple[str, Spans]]:
        """Rows are in `up`, columns in `down` (`cook.model.nn.composite`)."""
        yield ("up" if axis == "out" else "down"), spans

    @property
    def in_features(self) -> int:
        return self.down.in_features

    @property
    def out_features(self) -> int:
        return self.up.out_features


class LowRank(Factors):
    """A linear layer whose matrix is `up.weight @ down.weight`.

    Args:
        in_features, out_features: sizes of the product.
        rank: the inner dimension.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, *, bias: bool = True):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    @classmethod
    def like(cls, module: Any, rank: int) -> LowRank:
        """A low-rank layer of the same sizes and bias as `module`, with zero factors."""
        out, columns = linear.shape(module)
        weight, bias = module.weight, getattr(module, "bias", None)
        with torch.device("meta"):  # no random values are drawn
            new = cls(columns, out, rank, bias=bias is not None)
        for each in (new.up, new.down):
            zeros = torch.zeros(each.weight.shape, dtype=weight.dtype, device=weight.device)
            each.weight = nn.Parameter(zeros, requires_grad=weight.requires_grad)
        if bias is not None:
            new.up.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        return new.train(module.training)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.up(self.down(inputs))

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self.up.in_features

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    @property
    def weight(self) -> Tensor:
        """A tensor with the shape and dtype of the product, on the meta device; the product is not stored.

        T5 reads the dtype in every forward; computing the product each time would cost more than is saved.
        """
        size = self.out_features, self.in_features
        found = torch.empty(size, dtype=self.down.weight.dtype, device="meta")
        # Otherwise a model would initialise it randomly before its factors are loaded.
        found._is_hf_initialized = True  # type: ignore[attr-defined]
        return found


class Apart(nn.ModuleList):
    """A fused linear layer split into one linear layer per part; outputs are concatenated.

    Args:
        parts: linear layers, or replacements of them.
        width: rows per part in each interleaved block (queries, keys and values of one head after the
            other); None if the rows of a part are contiguous.
    """

    cook_composite: ClassVar[bool] = True

    def __init__(self, parts: Sequence[nn.Module], width: int | None = None):
        super().__init__(parts)
        self.width = width

    @classmethod
    def like(cls, module: Any, rows: Sequence[int], width: int | None = None) -> Apart:
        """Split a linear layer into parts of the given numbers of rows, keeping the weights."""
        weight, bias = linear.matrix(module).detach(), getattr(module, "bias", None)
        parts = []
        for numbers in part_rows(rows, width):
            with torch.device("meta"):
                part = nn.Linear(weight.shape[1], len(numbers), bias=bias is not None)
            index = numbers.to(weight.device)
            learns = module.weight.requires_grad
            part.weight = nn.Parameter(weight[index].contiguous(), requires_grad=learns)
            if bias is not None:
                part.bias = nn.Parameter(bias.detach()[index], requires_grad=bias.requires_grad)
            parts.append(part)
        return cls(parts, width).train(module.training)

    def forward(self, inputs: Tensor) -> Tensor:
        given = [part(inputs) for part in self]
        if self.width is None:
            return torch.cat(given, -1)
        return torch.stack([each.unflatten(-1, (-1, self.width)) for each in given], -2).flatten(-3)

    def faces(self, axis: str, spans: Spans) -> Iterator[tuple[str, Spans]]:
        """Rows are in their part, columns in all parts (`cook.model.nn.composite`).

        Raises:
            CookError: units span the parts differently from the heads.
        """
        start = 0
        for number, part in enumerate(self):
            rows = linear.shape(part)[0]
            own = spans if axis == "in" else _own(self, spans, start, rows)
            start += rows
            if not own:
                raise CookError(f"what is taken of a fused layer does not fit its {len(self)} parts")
            yield str(number), own

    @property
    def in_features(self) -> int:
        return linear.shape(self[0])[1]

    @property
    def out_features(self) -> int:
        return sum(linear.shape(part)[0] for part in self)

    def extra_repr(self) -> str:
        return "" if self.width is None else f"width={self.width}"


def part_rows(rows: Sequence[int], width: int | None) -> list[Tensor]:
    """The row indices of each part in a fused matrix.

    Args:
        rows: number of rows per part.
        width: as in `Apart`.
    """
    if width is None:
        return list(torch.arange(sum(rows)).split(list(rows)))
    return list(torch.arange(sum(rows)).view(-1, len(rows), width).transpose(0, 1).flatten(1))


def _own(module: Apart, spans: Spans, start: int, rows: int) -> Spans:
    """The spans that units own in one part: the `rows` rows of a fused layer from `start` on."""
    if module.width is not None:
        return ((0, module.width),) if spans == ((0, len(module) * module.width),) else ()
    return tuple((first - start, size) for first, size in spans if start <= first < start + rows)


def factorise(model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    """The Blueprint op `lowrank`: replace a linear layer by two factors."""
    old = _linear(model, name)
    rank, full = options["rank"], min(linear.shape(old))
    if rank >= full:
        raise CookError(f"{name} cannot have rank {rank}: its full rank is {full}", where="blueprint")
    surgery.replace(model, name, LowRank.like(old, rank))


def take_apart(model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    """The Blueprint's op `apart`: the parts of a fused layer in its place."""
    old = _linear(model, name)
    rows, width = options["rows"], options["width"]
    if sum(rows) != linear.shape(old)[0]:
        message = f"{name} has {linear.shape(old)[0]} rows, its parts have {sum(rows)}"
        raise CookError(message, where="blueprint")
    if width is not None and (len(set(rows)) > 1 or rows[0] % width):
        message = f"the parts of {name} have {rows} rows, expected equal multiples of {width}"
        raise CookError(message, where="blueprint")
    surgery.replace(model, name, Apart.like(old, rows, width))


def _linear(model: nn.Module, name: str) -> nn.Module:
    module = surgery.get(model, name)
    if not linear.is_linear(module) or getattr(module, "packed", False):
        found = type(module).__name__
        raise CookError(f"{name} should be a linear layer of floats, it is {found}", where="blueprint")
    return module
