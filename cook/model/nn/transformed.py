"""A linear layer whose weight and input pass through transforms during training.

Soft masks and fake quantisation are transforms of one replaced layer, so that they compose: masks are
applied first, quantisation last, so that a masked weight is still zero after quantisation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cook.model.nn import surgery
from cook.model.nn.linear import is_transposed, shape


class StraightThroughMask(torch.autograd.Function):
    """`weight * keep` in the forward; full gradient in the backward, so that masked weights still learn."""

    @staticmethod
    def forward(ctx: object, weight: Tensor, keep: Tensor) -> Tensor:
        return weight * keep

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SoftMask(nn.Module):
    """A mask over an [out, in] weight that keeps the dense weight, so that masked weights can grow back."""

    order: ClassVar[int] = 0
    keep: Tensor

    def __init__(self, out: int, columns: int, device: torch.device | None = None):
        super().__init__()
        self.register_buffer("keep", torch.ones(out, columns, dtype=torch.bool, device=device))

    def forward(self, weight: Tensor) -> Tensor:
        return StraightThroughMask.apply(weight, self.keep)

    def select(self, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
        """Select the rows and columns that the weight keeps."""
        for axis, index in ((0, out), (1, in_)):
            if index is not None:
                self.keep = self.keep.index_select(axis, index.to(self.keep.device))


class TransformedLinear(nn.Module):
    """Replaces a Linear or Conv1D and shares its parameters, under the same names.

    Args:
        source: the layer to replace; the property `source` returns it.

    Weight transforms map the weight as [out, in] to the same shape, in ascending `order`; input
    transforms map the input [..., in].
    """

    cook_linear: ClassVar[bool] = True
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, source: nn.Module):
        super().__init__()
        # In a tuple, so that the source is not a submodule and its parameters are counted once.
        self._source = (source,)
        self.transposed = is_transposed(source)
        self.out_features, self.in_features = shape(source)
        self.register_parameter("weight", source.get_parameter("weight"))
        self.register_parameter("bias", getattr(source, "bias", None))
        self.weight_transforms = nn.ModuleDict()
        self.input_transforms = nn.ModuleDict()
        self.train(source.training)

    def add_weight_transform(self, name: str, transform: nn.Module) -> None:
        """Add a transform under a unique name and keep all sorted by `order`."""
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
        """Remove the transforms called `name`."""
        for transforms in (self.weight_transforms, self.input_transforms):
            if _key(name) in transforms:
                del transforms[_key(name)]

    @property
    def quantised(self) -> bool:
        """Whether a weight transform will cause the weight to be stored as integers."""
        return any(hasattr(transform, "stored_bits") for transform in self.weight_transforms.values())

    @property
    def stored_bits(self) -> int | None:
        """The bit width in which the weight would be stored if folded now; None for floats."""
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
        """Keep the given rows and columns, as `surgery.select`, also in size-dependent transforms."""
        source = self.source()
        surgery.select(source, out=out, in_=in_)
        self.weight, self.bias = source.get_parameter("weight"), getattr(source, "bias", None)
        self.out_features, self.in_features = shape(source)
        for transform in self.weight_transforms.values():
            if callable(own := getattr(transform, "select", None)):
                own(out=out, in_=in_)

    def source(self) -> nn.Module:
        """The replaced layer, with the current parameters."""
        source: Any = self._source[0]
        source.weight, source.bias = self.weight, self.bias
        return source.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, transposed={self.transposed}"
        )


def transform(model: nn.Module, name: str) -> TransformedLinear:
    """The replacement of linear layer `name`, created if it does not exist yet."""
    layer = model.get_submodule(name)
    if not isinstance(layer, TransformedLinear):
        layer = TransformedLinear(layer)
        surgery.replace(model, name, layer)
    return layer


def restore(model: nn.Module, name: str) -> None:
    """Restore the original layer once no transform is left."""
    layer = model.get_submodule(name)
    if isinstance(layer, TransformedLinear) and layer.plain:
        surgery.replace(model, name, layer.source())


def _key(name: str) -> str:
    """A pass's id as a module name, which cannot contain dots."""
    return name.replace(".", "_")
