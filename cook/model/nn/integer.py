"""Integer weights: packing, rounding, and the linear layer that computes with them.

Quantisation is symmetric with a narrow range: b bits hold -(2^(b-1) - 1) .. 2^(b-1) - 1, and each row of
the weight has one scale. The output of `IntLinear` equals that of the fake-quantised layer exactly.
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
"""The bit widths that can be read; earlier versions wrote all of them."""
STORED = (2, 3, 4, 8)
"""The bit widths that are written."""


def stored_width(bits: int) -> int:
    """The bit width in which integers of `bits` bits are stored: the smallest sufficient one of STORED."""
    return next(width for width in STORED if width >= bits)


def limit(bits: int) -> int:
    """The largest integer of the narrow range: 127 for 8 bits, 7 for 4.

    Raises:
        ValueError: `bits` is not in 2..8.
    """
    if bits not in WIDTHS:
        raise ValueError(f"integers have 2 to 8 bits, not {bits}")
    return 2 ** (bits - 1) - 1


def packed_columns(columns: int, bits: int) -> int:
    """The bytes of a packed row of `columns` integers, padded to whole groups that fill whole bytes."""
    limit(bits)
    period = 8 // gcd(bits, 8)
    return -(-columns // period) * period * bits // 8


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack int8 [..., columns] into int8 [..., packed_columns]: low bits first, along the row.

    8 bits are returned unchanged. Narrower values are stored with an offset of 2^(b-1), so that no sign
    extension is needed. The bytes have dtype int8, because some models (T5) cast the input of a layer to
    its weight's dtype unless that is int8.

    Raises:
        ValueError: the width is not in 2..8, or a value is out of its range.
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
    """float32 [out] scales of a weight [out, in]: the largest magnitude of a row maps to the limit.

    The scale of a zero row is 1, so that division by the scale is always defined.
    """
    return _defined(weight.detach().float().abs().amax(dim=1) / limit(bits))


def quantize(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round a weight [out, in] to int8 in the narrow range of `bits`, with one scale [out] per row."""
    edge = limit(bits)
    steps = weight.detach().float() / scale.float().unsqueeze(1)
    return steps.round_().clamp_(-edge, edge).to(torch.int8)


def quantize_activation(x: Tensor, bits: int, scale: Tensor | None = None) -> Tensor:
    """Fake-quantise activations to `bits`, keeping the dtype and shape of `x`.

    Args:
        x: [..., features], any float dtype; rounding is computed in float32.
        bits: 2..8.
        scale: None for one scale per token (the largest magnitude of the last dimension), else one fixed
            scale; values beyond its range are clipped.
    """
    edge = limit(bits)
    wide = x.float()
    if scale is not None:
        step = scale.float()
        return (wide / step).round_().clamp_(-edge, edge).mul_(step).to(x.dtype)
    # The largest magnitude maps to the limit, so nothing needs clipping; a row of zeros stays zero.
    tiny = torch.finfo(torch.float32).tiny
    step = wide.abs().amax(dim=-1, keepdim=True).div_(edge).clamp_(min=tiny)
    return (wide / step).round_().mul_(step).to(x.dtype)


def _defined(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


class IntLinear(nn.Module):
    """A linear layer with integer weights and one scale per row.

    Args:
        in_features, out_features: sizes of the unpacked matrix.
        bits: bit width of the weight, 2..8.
        activation: None, `{"bits": b, "kind": "token"}`, or `{"bits": b, "kind": "static"}`, which adds
            the scalar `input_scale`.
        bias: whether the layer has a bias.
        conv1d: the layer replaces a Conv1D or another layer whose weight is stored as [in, out];
            dequantising the model restores it.
        device, dtype: of the parameters; `dtype` applies to the bias.

    The parameters are uninitialised: they are loaded, or set by `from_linear`. Integers and scales are
    frozen Parameters, not buffers, so that they are counted, placed and saved like any weight.
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
        """Quantise a linear layer: nn.Linear, Conv1D or a linear layer of cook.

        Args:
            module: the layer; its bias is shared, not copied.
            bits: the bit width to round to; the weight is stored in `stored_width(bits)`.
            activation: as for the class.
            scale: the row scales [out]; None for `row_scale`.
            input_scale: the scale of static activations.

        Raises:
            ValueError: static activations without `input_scale`.
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
        # As in the fake quantiser: multiplied in float32 and rounded to the dtype once.
        return values.float().mul_(self.scale.float().unsqueeze(1)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation:
            x = quantize_activation(x, self.activation["bits"], self.input_scale)
        return F.linear(x, self.dequantise(x.dtype), self.bias)

    def slice(self, rows: Tensor | None = None, columns: Tensor | None = None) -> IntLinear:
        """A new layer with the given rows and columns (indices; None: all), keeping integers and scales."""
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
        """A plain float layer with the same weight; activation quantisation is dropped."""
        new = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        new.weight = nn.Parameter(self.dequantise(dtype))
        if self.bias is not None:
            new.bias = nn.Parameter(self.bias.detach().to(dtype))
        return new.train(self.training)

    def freeze(self) -> None:
        """Disable gradients of integers and scales; loaders enable them for every float."""
        for parameter in (self.weight, self.scale, self.input_scale):
            if parameter is not None:
                parameter.requires_grad_(False)

    def _apply(self, fn: Any, recurse: bool = True) -> IntLinear:
        """Move with the model, but keep the scales float32 when the model is cast."""

        def keep(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            is_scale = tensor is self.scale or tensor is self.input_scale
            return tensor.to(new.device) if is_scale and new.dtype != tensor.dtype else new

        return super()._apply(keep, recurse)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        activation = f"{self.activation['kind']} {self.activation['bits']} bits" if self.activation else None
        return f"{sizes}, bias={self.bias is not None}, bits={self.bits}, activation={activation}"
