"""A linear layer whose weight and input pass through transforms while it trains.

Soft masks and fake quantisation are transforms of one replaced layer, so that they compose: masks come
first, quantisation last, and a weight that a mask zeroes is zero after quantisation too.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cook.model.nn import surgery
from cook.model.nn.linear import is_transposed, shape


class StraightThroughMask(torch.autograd.Function):
    """`weight * keep` forward; backward the whole gradient, so that masked weights still learn."""

    @staticmethod
    def forward(ctx: object, weight: Tensor, keep: Tensor) -> Tensor:
        return weight * keep

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SoftMask(nn.Module):
    """A mask over an [out, in] weight that keeps the dense weight: what is masked may grow back."""

    order: ClassVar[int] = 0
    keep: Tensor

    def __init__(self, out: int, columns: int, device: torch.device | None = None):
        super().__init__()
        self.register_buffer("keep", torch.ones(out, columns, dtype=torch.bool, device=device))

    def forward(self, weight: Tensor) -> Tensor:
        return StraightThroughMask.apply(weight, self.keep)

    def select(self, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Follow the weight when it loses rows or columns."""
        for axis, index in ((0, out), (1, in_)):
            if index is not None:
                self.keep = self.keep.index_select(axis, index.to(self.keep.device))


class TransformedLinear(nn.Module):
    """Stands in for a Linear or Conv1D and shares its parameters, under the same names.

    Args:
        source: the layer to stand in for; `source` gives it back.

    Weight transforms map the weight as [out, in] to the same shape, in ascending `order`; input
    transforms map the input [..., in].
    """

    cook_linear: ClassVar[bool] = True
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, source: nn.Module):
        super().__init__()
        # In a tuple, so that the source is no submodule and its parameters are counted once.
        self._source = (source,)
        self.transposed = is_transposed(source)
        self.out_features, self.in_features = shape(source)
        self.register_parameter("weight", source.get_parameter("weight"))
        self.register_parameter("bias", getattr(source, "bias", None))
        self.weight_transforms = nn.ModuleDict()
        self.input_transforms = nn.ModuleDict()
        self.train(source.training)

    def add_weight_transform(self, name: str, transform: nn.Module) -> None:
        """Add one under a name of its own and keep all sorted by their `order`."""
        self.weight_transforms[_key(name)] = transform.train(self.training)
        items: list[tuple[str, Any]] = list(self.weight_transforms.items())
        items.sort(key=lambda item: item[1].order)
        self.weight_transforms = nn.ModuleDict(dict(items))

    def add_input_transform(self, name: str, transform: nn.Module) -> None:
        self.input_transforms[_key(name)] = transform.train(self.training)

    def weight_transform(self, name: str) -> nn.Module:
        return self.weight_transforms[_key(name)]

    def input_transform(self, name: str) -> nn.Module:
        return self.input_transforms[_key(name)]

    def remove(self, name: str) -> None:
        """Take away the transforms called `name`."""
        for transforms in (self.weight_transforms, self.input_transforms):
            if _key(name) in transforms:
                del transforms[_key(name)]

    @property
    def quantised(self) -> bool:
        """Whether a weight transform will store the weight as integers."""
        return any(hasattr(transform, "stored_bits") for transform in self.weight_transforms.values())

    @property
    def stored_bits(self) -> int | None:
        """The width that the weight would be stored with if it were folded now; None for a float."""
        widths = [getattr(transform, "stored_bits", None) for transform in self.weight_transforms.values()]
        return next((bits for bits in widths if bits), None)

    @property
    def plain(self) -> bool:
        """Whether no transform is left."""
        return not self.weight_transforms and not self.input_transforms

    def effective(self) -> Tensor:
        """The weight [out, in] that the forward computes with."""
        weight = self.weight.t() if self.transposed else self.weight
        for transform in self.weight_transforms.values():
            weight = transform(weight)
        return weight

    def forward(self, inputs: Tensor) -> Tensor:
        for transform in self.input_transforms.values():
            inputs = transform(inputs)
        return functional.linear(inputs, self.effective(), self.bias)

    def select(self, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Keep some rows and columns, as `surgery.select`; transforms that know their size lose them too."""
        source = self.source()
        surgery.select(source, out=out, in_=in_)
        self.weight, self.bias = source.get_parameter("weight"), getattr(source, "bias", None)
        self.out_features, self.in_features = shape(source)
        for transform in self.weight_transforms.values():
            if callable(own := getattr(transform, "select", None)):
                own(out=out, in_=in_)

    def source(self) -> nn.Module:
        """The layer that this one stands in for, with the parameters as they are now."""
        source: Any = self._source[0]
        source.weight, source.bias = self.weight, self.bias
        return source.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, transposed={self.transposed}"
        )


def transform(model: nn.Module, name: str) -> TransformedLinear:
    """The stand-in for linear layer `name`, put in its place now if it is not there yet."""
    layer = model.get_submodule(name)
    if not isinstance(layer, TransformedLinear):
        layer = TransformedLinear(layer)
        surgery.replace(model, name, layer)
    return layer


def restore(model: nn.Module, name: str) -> None:
    """Put the source back in the place of its stand-in once no transform is left."""
    layer = model.get_submodule(name)
    if isinstance(layer, TransformedLinear) and layer.plain:
        surgery.replace(model, name, layer.source())


def _key(name: str) -> str:
    """A pass's id as a module name, which can hold no dot."""
    return name.replace(".", "_")
