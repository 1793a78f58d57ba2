"""Weights as integers: packing, rounding, and the linear layer that computes with them.

Everything is symmetric with a narrow range: b bits hold -(2^(b-1) - 1) .. 2^(b-1) - 1, a row of the
weight has one scale. `IntLinear` gives what the fake-quantised layer gave in training, digit for digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cook.model.nn import linear

WIDTHS = range(2, 9)
"""The widths in bits that can be read; earlier versions wrote all of them."""
STORED = (2, 3, 4, 8)
"""The widths in bits that are written."""


def stored_width(bits: int) -> int:
    """The width in which integers of `bits` bits are written: the next one of STORED."""
    return next(width for width in STORED if width >= bits)


def limit(bits: int) -> int:
    """The largest integer of the narrow range: 127 for 8 bits, 7 for 4.

    Raises:
        ValueError: when `bits` is not in 2..8.
    """
    if bits not in WIDTHS:
        raise ValueError(f"integers have 2 to 8 bits, not {bits}")
    return 2 ** (bits - 1) - 1


def packed_columns(columns: int, bits: int) -> int:
    """Bytes that a row of `columns` integers takes: whole groups of the values that fill whole bytes."""
    limit(bits)
    period = 8 // gcd(bits, 8)
    return -(-columns // period) * period * bits // 8


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack int8 [..., columns] into int8 [..., packed_columns]: low bits first, along the row.

    8 bits are returned as they are. Narrower ones are stored with an offset of 2^(b-1), so that no
    sign has to be put back. The bytes are typed int8, because some models (T5) cast the input of a
    layer to its weight's type unless that is int8.

    Raises:
        ValueError: for a width other than 2..8, or values that it cannot hold.
    """
    half = limit(bits) + 1
    if values.is_meta:
        size = packed_columns(values.shape[-1], bits)
        return values.new_empty((*values.shape[:-1], size), dtype=torch.int8)
    if bits == 8:
        return values.to(torch.int8).contiguous()
    if values.numel() and (int(values.min()) < -half or int(values.max()) >= half):
        raise ValueError(f"{bits} bits hold {-half} to {half - 1}")
    period = 8 // gcd(bits, 8)
    unsigned = (values.to(torch.int16) + half).to(torch.uint8)
    groups = F.pad(unsigned, (0, -values.shape[-1] % period)).unflatten(-1, (-1, period))
    packed = groups.new_zeros((*groups.shape[:-1], period * bits // 8))
    for index in range(period):
        byte, shift = divmod(index * bits, 8)
        packed[..., byte] |= groups[..., index] << shift
        if shift + bits > 8:
            packed[..., byte + 1] |= groups[..., index] >> (8 - shift)
    return packed.flatten(-2).view(torch.int8)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `pack`: int8 [..., packed_columns] -> int8 [..., columns]."""
    half = limit(bits) + 1
    if bits == 8:
        return packed
    period = 8 // gcd(bits, 8)
    groups = packed.view(torch.uint8).unflatten(-1, (-1, period * bits // 8))
    values = groups.new_empty((*groups.shape[:-1], period))
    for index in range(period):
        byte, shift = divmod(index * bits, 8)
        value = groups[..., byte] >> shift
        if shift + bits > 8:
            value |= groups[..., byte + 1] << (8 - shift)
        values[..., index] = value & (2 * half - 1)
    return values.flatten(-2)[..., :columns].view(torch.int8) - half


def row_scale(weight: Tensor, bits: int) -> Tensor:
    """float32 [out] scales of a weight [out, in]: the largest magnitude of a row meets the limit.

    A row of zeros gets 1, so that dividing by the scale is always defined.
    """
    return _defined(weight.detach().float().abs().amax(dim=1) / limit(bits))


def quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round a weight [out, in] to int8 in the narrow range of `bits`, one scale [out] a row."""
    edge = limit(bits)
    steps = weight.detach().float() / scale.float().unsqueeze(1)
    return steps.round_().clamp_(-edge, edge).to(torch.int8)


def quantize_activation(x: Tensor, bits: int, scale: Tensor | None = None) -> Tensor:
    """Fake-quantise activations: rounded to `bits`, in the type and shape of `x`.

    Args:
        x: [..., features], any float type; the rounding itself happens in float32.
        bits: 2..8.
        scale: None for a scale a token (the largest magnitude of the last dimension), else one fixed
            scale; what is beyond it is clipped.
    """
    edge = limit(bits)
    wide = x.float()
    if scale is not None:
        step = scale.float()
        return (wide / step).round_().clamp_(-edge, edge).mul_(step).to(x.dtype)
    # The largest magnitude meets the limit, so nothing has to be clipped; a row of zeros stays zero.
    tiny = torch.finfo(torch.float32).tiny
    step = wide.abs().amax(dim=-1, keepdim=True).div_(edge).clamp_(min=tiny)
    return (wide / step).round_().mul_(step).to(x.dtype)


def _defined(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


class IntLinear(nn.Module):
    """A linear layer whose weight is stored as integers and a scale a row.

    Args:
        in_features, out_features: the sizes of the matrix, whatever the packing.
        bits: width of the weight, 2..8.
        activation: None, `{"bits": b, "kind": "token"}`, or `{"bits": b, "kind": "static"}`, which adds
            the scalar `input_scale`.
        bias: whether there is one.
        conv1d: the layer stands where the model had a Conv1D, or another whose weight lies as [in, out];
            dequantising the model puts one back.
        device, dtype: of the parameters; `dtype` is the bias's.

    The parameters are created empty: they are loaded, or filled by `from_linear`. Integers and scales
    are frozen Parameters, not buffers, so that they are counted, placed and saved as any weight.
    """

    cook_linear = True
    packed = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int = 8,
        activation: Mapping[str, Any] | None = None,
        *,
        bias: bool = True,
        conv1d: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.activation, self.conv1d = bits, dict(activation) if activation else None, conv1d
        size = (out_features, packed_columns(in_features, bits))
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.int8, device=device), requires_grad=False)
        self.scale = nn.Parameter(
            torch.empty(out_features, dtype=torch.float32, device=device), requires_grad=False
        )
        self.input_scale: nn.Parameter | None
        self.bias: nn.Parameter | None
        if self.activation and self.activation["kind"] == "static":
            empty = torch.empty((), dtype=torch.float32, device=device)
            self.input_scale = nn.Parameter(empty, requires_grad=False)
        else:
            self.register_parameter("input_scale", None)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_linear(
        cls,
        module: nn.Module,
        bits: int = 8,
        activation: Mapping[str, Any] | None = None,
        scale: Tensor | None = None,
        *,
        input_scale: Tensor | None = None,
    ) -> IntLinear:
        """Round a linear layer: nn.Linear, Conv1D or a linear of cook.

        Args:
            module: the layer; its bias is shared, not copied.
            bits: the width that the weight is rounded to; it is stored in `stored_width(bits)`.
            activation: as above.
            scale: the scales [out] of the rows; None takes `row_scale`.
            input_scale: the scale of a static activation.

        Raises:
            ValueError: for a static activation without its scale.
        """
        weight = linear.matrix(module)
        rows, columns = weight.shape
        bias = getattr(module, "bias", None)
        conv1d = bool(getattr(module, "conv1d", linear.is_transposed(module)))
        has_bias = bias is not None
        width = stored_width(bits)
        new = cls(columns, rows, width, activation, bias=has_bias, conv1d=conv1d, device="meta")
        scale = row_scale(weight, bits) if scale is None else scale.detach().float().reshape(rows)
        new.scale = nn.Parameter(scale.clone(), requires_grad=False)
        new.weight = nn.Parameter(pack(quantize(weight, scale, bits), width), requires_grad=False)
        new.bias = bias
        if new.input_scale is not None:
            if input_scale is None:
                raise ValueError("a static activation needs input_scale")
            fixed = input_scale.detach().float().reshape(()).clone()
            new.input_scale = nn.Parameter(fixed, requires_grad=False)
        return new.train(module.training)

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in] as floats."""
        values = unpack(self.weight, self.bits, self.in_features)
        # As the fake quantiser has it: multiplied in float32, and rounded to the type once.
        return values.float().mul_(self.scale.float().unsqueeze(1)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation:
            x = quantize_activation(x, self.activation["bits"], self.input_scale)
        return F.linear(x, self.dequantise(x.dtype), self.bias)

    def slice(self, rows: Tensor | None = None, columns: Tensor | None = None) -> IntLinear:
        """A new layer with these rows and columns (indices, None for all), integers and scales kept."""
        values = unpack(self.weight, self.bits, self.in_features)
        scale, bias = self.scale.detach(), self.bias
        if rows is not None:
            values, scale = values[rows], scale[rows]
            bias = None if bias is None else nn.Parameter(bias.detach()[rows], bias.requires_grad)
        if columns is not None:
            values = values[:, columns]
        height, width = values.shape
        new = IntLinear(
            width,
            height,
            self.bits,
            self.activation,
            bias=bias is not None,
            conv1d=self.conv1d,
            device="meta",
        )
        new.weight = nn.Parameter(pack(values, self.bits).clone(), requires_grad=False)
        new.scale = nn.Parameter(scale.clone(), requires_grad=False)
        new.bias, new.input_scale = bias, self.input_scale
        return new.train(self.training)

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """A plain float layer with the same weight; the rounding of activations is gone."""
        new = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        new.weight = nn.Parameter(self.dequantise(dtype))
        if self.bias is not None:
            new.bias = nn.Parameter(self.bias.detach().to(dtype))
        return new.train(self.training)

    def freeze(self) -> None:
        """Integers and scales take no gradient; loaders give one to every float."""
        for parameter in (self.weight, self.scale, self.input_scale):
            if parameter is not None:
                parameter.requires_grad_(False)

    def _apply(self, fn: Any, recurse: bool = True) -> IntLinear:
        """Move with the model, but keep the scales float32 when it is cast."""

        def keep(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            is_scale = tensor is self.scale or tensor is self.input_scale
            return tensor.to(new.device) if is_scale and new.dtype != tensor.dtype else new

        return super()._apply(keep, recurse)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        activation = f"{self.activation['kind']} {self.activation['bits']} bits" if self.activation else None
        return f"{sizes}, bias={self.bias is not None}, bits={self.bits}, activation={activation}"
