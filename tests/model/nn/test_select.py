"""Rows and columns that leave a module, a stand-in or a mask: what stays is untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cook.errors import CookError
from cook.model.nn import surgery
from cook.model.nn.integer import IntLinear
from cook.model.nn.linear import matrix, shape
from cook.model.nn.masks import Masks, soften
from cook.model.nn.transformed import TransformedLinear, restore

OUT, IN = torch.tensor([0, 2, 3]), torch.tensor([1, 4])


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
@pytest.mark.parametrize("out", [OUT, None])
@pytest.mark.parametrize("in_", [IN, None])
def test_a_linear_layer_keeps_what_is_selected(kind, out, in_):
    layer = Conv1D(4, 5) if kind == "conv1d" else nn.Linear(5, 4, bias=kind == "linear")
    layer = layer.to(torch.float64)
    layer.weight.requires_grad_(False)
    rows = list(range(4)) if out is None else out.tolist()
    columns = list(range(5)) if in_ is None else in_.tolist()
    whole = matrix(layer).clone()
    bias = None if layer.bias is None else layer.bias.clone()
    surgery.select(layer, out=out, in_=in_)
    assert shape(layer) == (len(rows), len(columns))
    sizes = (layer.nf, layer.nx) if kind == "conv1d" else (layer.out_features, layer.in_features)
    assert sizes == shape(layer)
    for new_row, row in enumerate(rows):
        for new_column, column in enumerate(columns):
            assert matrix(layer)[new_row, new_column] == whole[row, column]
        assert bias is None or layer.bias[new_row] == bias[row]
    assert (layer.weight.dtype, layer.weight.requires_grad) == (torch.float64, False)
    assert layer(torch.randn(2, len(columns), dtype=torch.float64)).shape == (2, len(rows))


def test_an_embedding_keeps_entries():
    layer = nn.Embedding(6, 3)
    whole = layer.weight.detach().clone()
    surgery.select(layer, in_=IN)
    assert torch.equal(layer.weight, whole[IN])
    assert (layer.num_embeddings, layer.embedding_dim) == (2, 3)
    surgery.select(layer, out=torch.tensor([2, 0]))
    assert torch.equal(layer.weight, whole[IN][:, [2, 0]])


def test_a_norm_a_convolution_and_vectors_keep_channels():
    norm, convolution = nn.LayerNorm(4), nn.Conv2d(2, 4, 3)
    whole = convolution.weight.detach().clone()
    surgery.select(norm, out=OUT)
    surgery.select(convolution, out=OUT, in_=torch.tensor([1]))
    assert norm(torch.randn(2, 3)).shape == (2, 3)
    assert torch.equal(convolution.weight, whole[OUT][:, [1]])
    assert convolution(torch.randn(1, 1, 5, 5)).shape == (1, 3, 3, 3)
    vectors = nn.ParameterDict({"one": torch.randn(1, 1, 4), "several": torch.randn(1, 5, 4)})
    several = vectors["several"].detach().clone()
    surgery.select(vectors, out=OUT)
    assert torch.equal(vectors["several"], several[..., OUT])


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(CookError, match="cannot lose rows or columns"):
        surgery.select(nn.Conv2d(4, 4, 1, groups=2), out=OUT)
    with pytest.raises(CookError, match="cannot lose rows or columns"):
        surgery.select(nn.LayerNorm(5), in_=IN)
    with pytest.raises(CookError, match="no float matrix"):
        surgery.select(IntLinear(5, 4, 8, None), out=OUT)


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), Conv1D(4, 5)], ids=["linear", "conv1d"])
def test_a_stand_in_follows_with_its_mask_and_its_source(layer):
    model = nn.Sequential(layer)
    mask = soften(model, "0", "pass")
    mask.keep[2, 4] = False
    stand_in = model[0]
    assert isinstance(stand_in, TransformedLinear)
    inputs = torch.randn(3, 5)
    inputs[:, [0, 2, 3]] = 0  # only the columns that stay say anything
    before = model(inputs)[:, OUT]
    surgery.select(stand_in, out=OUT, in_=IN)
    assert torch.allclose(model(inputs[:, IN]), before, atol=1e-6)
    assert not mask.keep[1, 1]
    stand_in.remove("pass")
    restore(model, "0")
    assert type(model[0]) is type(layer)
    assert shape(model[0]) == (3, 2)
    assert model[0](inputs[:, IN]).shape == (3, 3)


def test_hard_masks_follow_a_parameter():
    model = nn.Sequential(nn.Embedding(4, 2))
    masks = Masks(model)
    keep = torch.tensor([[True, True], [False, True], [True, False], [True, True]])
    masks.set("one", "0.weight", keep)
    masks.set("two", "0.weight", ~torch.eye(4, 2, dtype=torch.bool))
    kept = torch.tensor([0, 2])
    surgery.select(model[0], in_=kept)
    masks.select("0.weight", {0: kept})
    assert masks.get("one", "0.weight").tolist() == keep[kept].tolist()
    with torch.no_grad():
        model[0].weight.fill_(1)
    masks.apply()
    assert model[0].weight.tolist() == [[0, 1], [1, 0]]
    masks.select("another", {0: kept})  # nothing lies over it
