"""Groups of layers: what they cover, and what is refused by its number."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.families import FAMILIES
from cook.model.nn import surgery
from cook.share.groups import consecutive, grouped
from tests.helpers import bound, families, tiny


def meta(family: str = "bert", layers: int = 6) -> nn.Module:
    with torch.device("meta"):
        return tiny.model(family, layers=layers)


def numbers(model: nn.Module, asked) -> list[list[int]]:
    anatomy = Anatomy(model)
    return [[anatomy.layers.index(layer) for layer in each.layers] for each in grouped(anatomy, asked, "all")]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 12), size=st.integers(2, 12))
def test_consecutive_groups_have_every_layer_once(count, size):
    layers = [f"layer.{number}" for number in range(count)]
    if count % size:
        with pytest.raises(CookError, match=f"{count} layers do not divide into groups of {size}"):
            consecutive(layers, size)
        return
    groups = consecutive(layers, size)
    assert [layer for group in groups for layer in group] == layers
    assert {len(group) for group in groups} == {size}


def test_groups_by_size_and_by_list():
    model = meta()
    assert numbers(model, 2) == [[0, 1], [2, 3], [4, 5]]
    assert numbers(model, 6) == numbers(model, "all") == [[0, 1, 2, 3, 4, 5]]
    assert numbers(model, [[0], [5, 1], [2, 3, -2]]) == [[1, 5], [2, 3, 4]]


@pytest.mark.parametrize(
    ("asked", "words", "hint"),
    [
        (4, "6 layers do not divide into groups of 4", "2, 3, 6"),
        ([[0, 1, 2], [2, 3, 4, 5]], "layer 2 is named 2 times", "one group"),
        ([[0, 1, 1], [2, 3, 4, 5]], "layer 1 is named 2 times", "one group"),
        ([[0, 1], [2, 3]], "no group holds layers 4, 5", r"\[4\]"),
        ([[0, 1, 2, 3, 4]], "no group holds layer 5", r"\[5\]"),
        ([[0, 1, 2, 3, 4, 6], [5]], "there is no layer 6", None),
        ([[0], [1], [2], [3], [4], [5]], "no layer would share", "groups: 2"),
    ],
)
def test_bad_groups_are_refused_by_number(asked, words, hint):
    with pytest.raises(CookError, match=words) as caught:
        bound.session(tiny.model(layers=6), {"share.layers": {"groups": asked}})
    assert caught.value.where == "<dict>: passes[0].groups"
    if hint:
        assert re.search(hint, str(caught.value.hint))


def test_unequal_layers_are_named():
    model = meta(layers=3)
    surgery.resize(model.get_submodule("bert.encoder.layer.2.intermediate.dense"), 20, 16)
    surgery.resize(model.get_submodule("bert.encoder.layer.2.output.dense"), 16, 20)
    words = "layers 0 and 2 are not alike: intermediate.dense.bias is 32 in one, 20 in the other"
    with pytest.raises(CookError, match=words):
        grouped(Anatomy(model), "all", "all")
    assert grouped(Anatomy(model), "all", "attention")
    assert numbers(model, [[0, 1], [2]]) == [[0, 1]]


def test_albert_shares_already():
    with pytest.raises(CookError, match="its layers share already"):
        grouped(Anatomy(families.made("albert", device="meta")), "all", "all")


@pytest.mark.parametrize("family", families.ENCODER_DECODER)
def test_encoder_and_decoder_are_grouped_apart(family):
    model = families.made(family, device="meta")
    assert numbers(model, "all") == numbers(model, 2) == [[0, 1], [2, 3]]
    with pytest.raises(CookError, match="layers 1 and 2 are of different kinds"):
        grouped(Anatomy(model), [[0], [1, 2], [3]], "all")


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"albert"}))
def test_every_number_of_a_layer_belongs_to_one_part(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"), device="meta")
    anatomy = Anatomy(model)
    for attention, ffn, every in zip(
        *(grouped(anatomy, "all", parts) for parts in ("attention", "ffn", "all")), strict=True
    ):
        assert not set(attention.modules) & set(ffn.modules)
        assert {*attention.modules, *ffn.modules} == set(every.modules)
        for layer in every.layers:
            inside = {id(each) for each in model.get_submodule(layer).parameters()}
            names = every.names(layer)
            held = {
                id(each) for name in names for each in model.get_submodule(name).parameters(recurse=False)
            }
            bias = f"{layer}.layer.0.SelfAttention.relative_attention_bias"
            apart = (
                {id(each) for each in model.get_submodule(bias).parameters()}
                if family == "t5" and surgery.has(model, bias)
                else set()
            )
            assert held == inside - apart


def test_a_norm_of_nobody_is_refused_with_a_way_out():
    model = meta(layers=2)
    for layer in model.bert.encoder.layer:
        layer.extra = nn.LayerNorm(16, device="meta")
    with pytest.raises(CookError, match=r"does not know whether .*extra belongs") as caught:
        grouped(Anatomy(model), "all", "ffn")
    assert "parts: all" in caught.value.hint
    assert "extra" in grouped(Anatomy(model), "all", "all")[0].modules
