"""Integers in and out of bytes, and the layer that computes with them."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from cook.model.nn import linear
from cook.model.nn.integer import (
    IntLinear,
    limit,
    pack,
    packed_columns,
    quantize,
    quantize_activation,
    row_scale,
    unpack,
)
from cook.quant.fake import FakeQuantWeight

TOKEN = {"bits": 8, "kind": "token"}


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), rows=st.integers(1, 4), columns=st.integers(1, 37), seed=st.integers(0, 2**31))
def test_pack_keeps_every_value(bits, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    values = torch.randint(-half, half, (rows, columns), generator=generator, dtype=torch.int8)
    packed = pack(values, bits)
    assert packed.shape == (rows, packed_columns(columns, bits))
    assert packed.dtype == torch.int8
    assert torch.equal(unpack(packed, bits, columns), values)


def test_packing_takes_the_bits_it_says():
    assert [packed_columns(64, bits) for bits in range(2, 9)] == [8 * bits for bits in range(2, 9)]
    assert packed_columns(3, 4) == 2


def test_pack_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="-8 to 7"):
        pack(torch.tensor([[8]], dtype=torch.int8), 4)
    with pytest.raises(ValueError, match="2 to 8 bits"):
        pack(torch.tensor([[0]], dtype=torch.int8), 9)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantize_is_within_half_a_step(bits):
    weight = torch.randn(6, 33)
    weight[2] = 0
    scale = row_scale(weight, bits)
    values = quantize(weight, scale, bits)
    assert values.abs().max() <= limit(bits)
    assert scale[2] == 1
    assert ((values * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all()


def test_activation_follows_its_token_or_its_fixed_scale():
    x = torch.randn(2, 3, 16)
    x[0, 0] = 0
    for row, found in zip(x.flatten(0, 1), quantize_activation(x, 8).flatten(0, 1), strict=True):
        step = row.abs().max() / 127 if row.any() else torch.tensor(1.0)
        torch.testing.assert_close(found, (row / step).round() * step)
    fixed = quantize_activation(x, 4, torch.tensor(0.1))
    assert fixed.abs().max() <= 0.7 + 1e-6
    assert quantize_activation(x.half(), 8).dtype == torch.float16
    assert quantize_activation(torch.full((1, 4), float("nan")), 8).isnan().all()


def sources(bias=True):
    conv = Conv1D(5, 7)
    nn.init.normal_(conv.bias)
    return [nn.Linear(7, 5, bias=bias), conv]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("index", [0, 1])
def test_forward_is_the_fake_quantised_layer(bits, index):
    source = sources()[index]
    x = torch.randn(3, 7)
    weight = linear.matrix(source)
    scale = row_scale(weight, bits)
    fake = (weight / scale[:, None]).round().clamp(-limit(bits), limit(bits)) * scale[:, None]
    layer = IntLinear.from_linear(source, bits, TOKEN)
    expected = F.linear(quantize_activation(x, 8), fake.contiguous(), source.bias)
    assert torch.equal(layer(x), expected)
    assert linear.shape(layer) == (5, 7)
    assert torch.equal(linear.matrix(layer), fake)
    plain = layer.to_linear()
    assert torch.equal(plain.weight, fake)
    assert type(plain) is nn.Linear


@pytest.mark.parametrize("bits", [3, 8])
def test_slice_keeps_integers_and_scales(bits):
    layer: Any = IntLinear.from_linear(
        sources()[0], bits, {"bits": 8, "kind": "static"}, input_scale=torch.tensor(0.1)
    )
    rows, columns = torch.tensor([4, 1]), torch.tensor([0, 2, 6])
    part: Any = layer.slice(rows, columns)
    assert torch.equal(part.dequantise(), layer.dequantise()[rows][:, columns])
    assert torch.equal(part.bias, layer.bias[rows])
    assert (part.in_features, part.out_features, part.input_scale) == (3, 2, layer.input_scale)
    assert torch.equal(layer.slice(columns=columns).dequantise(), layer.dequantise()[:, columns])


def test_integers_and_scales_are_frozen_parameters():
    layer = IntLinear(7, 5, 4, {"bits": 8, "kind": "static"})
    assert {name for name, _ in layer.named_parameters()} == {"weight", "scale", "input_scale", "bias"}
    assert [name for name, each in layer.named_parameters() if each.requires_grad] == ["bias"]
    assert "bits=4" in repr(layer)
    assert "static 8 bits" in repr(layer)


def test_casting_keeps_scales_in_float32():
    layer: Any = IntLinear.from_linear(sources()[0], 8, TOKEN).to(torch.bfloat16)
    assert (layer.weight.dtype, layer.scale.dtype, layer.bias.dtype) == (
        torch.int8,
        torch.float32,
        torch.bfloat16,
    )
    assert layer(torch.randn(2, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_copies_compute_the_same():
    layer = IntLinear.from_linear(sources(bias=False)[0], 4)
    x = torch.randn(2, 7)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


def test_a_static_activation_needs_its_scale():
    with pytest.raises(ValueError, match="input_scale"):
        IntLinear.from_linear(sources()[0], 8, {"bits": 8, "kind": "static"})


def test_one_view_over_linear_layers():
    plain, conv = sources()
    assert linear.shape(plain) == linear.shape(conv) == (5, 7)
    assert torch.equal(linear.matrix(conv), conv.weight.t())
    assert linear.matrix(plain) is plain.weight
    assert [linear.is_transposed(each) for each in (plain, conv)] == [False, True]
    assert not linear.is_linear(nn.LayerNorm(3))
    for ask in (linear.shape, linear.matrix):
        with pytest.raises(TypeError, match="LayerNorm"):
            ask(nn.LayerNorm(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_half_precision_is_rounded_once(dtype, bits):
    torch.manual_seed(0)
    weight = (torch.randn(16, 32) * 3e-5).to(dtype)
    rounded = FakeQuantWeight(bits)
    rounded.enabled = True
    linear = nn.Linear(32, 16, bias=False).to(dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    integer = IntLinear.from_linear(linear, bits, None)
    assert torch.equal(integer.dequantise(dtype), rounded(weight))
