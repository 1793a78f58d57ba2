"""Layers that are made of several: what they compute, and heads and neurons that leave them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from cook.errors import CookError
from cook.model.arch import units
from cook.model.arch.anatomy import Anatomy, inferred
from cook.model.arch.families import FAMILIES, STREAMS
from cook.model.arch.width import stream
from cook.model.edits import removal
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.edits.plain import current
from cook.model.hub.quantizer import attach_quantizer, blueprint_of
from cook.model.nn import surgery
from cook.model.nn.composite import places, whole
from cook.model.nn.linear import is_linear, linears, matrix, shape
from cook.model.nn.lowrank import Apart, LowRank, part_rows
from cook.model.probe.measure import macs
from cook.prune.structure import cost
from cook.prune.structure.importance import gradient_importance, magnitude_importance
from tests.helpers import bound, families
from tests.helpers.reshaped import own_memory
from tests.model.arch.test_units import drawn, held, logits

KINDS = ["one", "apart"]


def low(family: str, fused: str = "one", **options: Any) -> Any:
    """A model whose layers are all low rank, in eval mode."""
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    given = {"method": "svd", "parameters": 0.8, "fused": fused, **options}
    bound.session(model, {"lowrank.linear": given}, steps=0).finish()
    assert any(isinstance(each, LowRank) for each in model.modules())
    return model.eval()


def all_units(model: nn.Module) -> list[units.UnitGroup]:
    return units.units(Anatomy(model))


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
def test_a_layer_of_two_factors_is_their_product(kind):
    layer = Conv1D(6, 9) if kind == "conv1d" else nn.Linear(9, 6, bias=kind == "linear")
    layer = layer.double().eval()
    layer.weight.requires_grad_(False)
    new = LowRank.like(layer, 4)
    assert (new.in_features, new.out_features, new.rank, shape(new)) == (9, 6, 4, (6, 9))
    assert [each.requires_grad for each in (new.up.weight, new.down.weight)] == [False, False]
    assert not new.training
    nn.init.normal_(new.up.weight)
    nn.init.normal_(new.down.weight)
    inputs = torch.randn(2, 3, 9, dtype=torch.float64)
    expected = inputs @ (new.up.weight @ new.down.weight).t() + (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(new(inputs), expected)
    assert (new.bias is None) == (layer.bias is None)
    assert (new.weight.dtype, tuple(new.weight.shape), new.weight.device.type) == (
        torch.float64,
        (6, 9),
        "meta",
    )
    assert "weight" not in dict(new.named_parameters())
    rows, columns = torch.tensor([0, 2, 5]), torch.tensor([1, 2, 3, 8])
    kept = new(_only(inputs, columns))[..., rows]
    surgery.select(new, out=rows, in_=columns)
    assert (shape(new), new.rank) == ((3, 4), 4)
    torch.testing.assert_close(new(inputs[..., columns]), kept)


def _only(inputs: Tensor, columns: Tensor) -> Tensor:
    return torch.zeros_like(inputs).index_copy(-1, columns, inputs[..., columns])


@pytest.mark.parametrize(("rows", "width"), [([4, 2, 2], None), ([4, 4, 4], 2), ([6, 6], 3)])
@pytest.mark.parametrize("conv1d", [False, True])
def test_parts_give_what_the_fused_layer_gives(rows, width, conv1d):
    layer = Conv1D(sum(rows), 5) if conv1d else nn.Linear(5, sum(rows))
    nn.init.normal_(layer.bias)
    apart = Apart.like(layer, rows, width)
    inputs = torch.randn(2, 3, 5)
    torch.testing.assert_close(apart(inputs), layer(inputs))
    assert (apart.in_features, apart.out_features) == (5, sum(rows))
    assert [shape(part)[0] for part in apart] == rows
    found = torch.cat(part_rows(rows, width))
    assert sorted(found.tolist()) == list(range(sum(rows)))
    if width:  # queries, keys and values of a head one after the other
        assert part_rows(rows, width)[1][:width].tolist() == list(range(width, 2 * width))


def test_where_rows_and_columns_live():
    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "low": LowRank(4, 4, 2)})
    model["fused"] = Apart([LowRank(4, 4, 2), nn.Linear(4, 2)])
    spans = ((0, 1),)
    assert list(places(model, "plain", "out", spans)) == [("plain", spans)]
    assert list(places(model, "low", "out", spans)) == [("low.up", spans)]
    assert list(places(model, "low", "in", spans)) == [("low.down", spans)]
    assert list(places(model, "fused", "in", spans)) == [("fused.0.down", spans), ("fused.1", spans)]
    found = list(places(model, "fused", "out", ((0, 2), (4, 1))))
    assert found == [("fused.0.up", ((0, 2),)), ("fused.1", ((0, 1),))]
    with pytest.raises(CookError, match="does not fit its 2 parts"):
        list(places(model, "fused", "out", ((0, 1),)))
    assert [whole(model, name) for name in ("plain", "low.up", "fused.0.down", "fused.1")] == [
        "plain",
        "low",
        "fused",
        "fused",
    ]
    assert linears(model) == ["plain", "low", "fused"]


@pytest.mark.parametrize("family", families.ALL)
@pytest.mark.parametrize("fused", KINDS)
def test_taking_units_out_of_factors_is_holding_them_at_zero(family, fused):
    model = low(family, fused)
    found = all_units(model)
    kept = drawn(found)
    masked = held(copy.deepcopy(model), found, kept)
    cut, edits = copy.deepcopy(model), []
    for each, keep in zip(found, kept, strict=True):
        gone = sum(p.numel() for p in cut.parameters())
        edits += removal.remove(cut, each, keep)[0]
        gone -= sum(p.numel() for p in cut.parameters())
        assert gone == int((~keep).sum()) * units.weights(model, each)
    torch.testing.assert_close(logits(cut, family), logits(masked, family), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(cut, family), logits(model, family), atol=1e-3)
    # As many units as whole layers have, and all of what they own is a plain layer's.
    plain = all_units(families.made(family, families.ATTENTION.get(family, "sdpa")))
    assert [each.count for each in found] == [each.count for each in plain]
    assert not any(isinstance(surgery.get(model, p.module), LowRank | Apart) for u in found for p in u.parts)


@pytest.mark.parametrize("family", families.ALL)
@pytest.mark.parametrize("fused", KINDS)
def test_a_cut_model_of_factors_is_built_again_and_loads(family, fused, tmp_path):
    model = low(family, fused)
    edits = list(blueprint_of(model).edits)
    for each, keep in zip(found := all_units(model), drawn(found), strict=True):
        edits += removal.remove(model, each, keep)[0]
    attach_quantizer(model, current(model, Blueprint(edits=edits)))
    expected = logits(model, family)
    model.save_pretrained(tmp_path)
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    back = auto.from_pretrained(tmp_path, attn_implementation=model.config._attn_implementation).eval()
    torch.testing.assert_close(logits(own_memory(back), family), expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        type(model)(back.config).load_state_dict(model.state_dict())


@pytest.mark.parametrize("family", families.ALL)
@pytest.mark.parametrize("fused", KINDS)
def test_the_cost_of_factors_is_foretold(family, fused):
    model, batch = low(family, fused), families.batch(family)
    found = all_units(model)
    left = [max(1, each.count - 1 - number % 2) for number, each in enumerate(found)]
    cut = copy.deepcopy(model)
    for each, count in zip(found, left, strict=True):
        removal.remove(cut, each, torch.arange(each.count) < count)
    assert cost.parameters(model, found).of(left) == sum(each.numel() for each in cut.parameters())
    foretold = cost.multiply_accumulates(model, found, batch)
    assert foretold.whole == pytest.approx(macs(model, batch), abs=0.5)
    assert foretold.of(left) == pytest.approx(macs(cut, batch), abs=0.5)


@pytest.mark.parametrize("family", ["bert", "gpt_neox", "phi3", "llama"])
def test_the_importance_of_units_is_that_of_the_product(family):
    """A model of factors, and the same with their products as whole matrices."""
    model, batch = low(family, "apart"), families.batch(family)
    product = copy.deepcopy(model)
    for name, module in list(product.named_modules()):
        if isinstance(module, LowRank):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            plain.weight = nn.Parameter(module.up.weight @ module.down.weight)
            if module.bias is not None:
                plain.bias = nn.Parameter(module.bias.clone())
            surgery.replace(product, name, plain)
    ours, theirs = all_units(model), all_units(product)
    expected = gradient_importance(product, [batch], theirs)
    for one, other in zip(gradient_importance(model, [batch], ours), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert all(bool(each.isfinite().all()) for each in magnitude_importance(model, ours))


@pytest.mark.parametrize("family", sorted(STREAMS))
def test_the_residual_stream_of_factors_narrows(family):
    model = low(family)
    found = stream(Anatomy(model))
    assert found.count == 16
    keep = torch.arange(16) != 3
    before = stream(Anatomy(families.made(family)))
    assert {whole(model, part.module) for part in found.parts} == {part.module for part in before.parts}
    removal.remove(model, found, keep)
    assert logits(model, family).shape == (3, 2)
    assert stream(Anatomy(model)).count == 15


def test_a_family_without_an_entry_is_inferred_from_layers_of_factors(monkeypatch):
    model = low("llama")
    entry = {name: family for name, family in FAMILIES.items() if name != "llama"}
    monkeypatch.setattr("cook.model.arch.anatomy.FAMILIES", entry)
    assert inferred(model) is not None
    assert Anatomy(model).layers == ["model.layers.0", "model.layers.1"]


LINEAR = "bert.encoder.layer.0.intermediate.dense"
GPT2 = "transformer.h.0.attn.c_attn"


@pytest.mark.parametrize(
    ("family", "op", "module", "options", "words"),
    [
        ("bert", "lowrank", LINEAR, {"rank": 16}, "full rank is 16"),
        ("bert", "lowrank", LINEAR, {"rank": 0}, "from 1 to"),
        ("bert", "lowrank", LINEAR, {"rank": True}, "from 1 to"),
        ("bert", "lowrank", LINEAR, {"rank": 2.0}, "from 1 to"),
        ("bert", "lowrank", LINEAR, {}, "rank is missing"),
        ("bert", "lowrank", LINEAR, {"rank": 2, "out": 3}, "unknown key"),
        ("bert", "lowrank", "bert.encoder", {"rank": 2}, "should be a linear layer"),
        ("bert", "lowrank", "bert.embeddings.word_embeddings", {"rank": 2}, "should be a linear layer"),
        ("gpt2", "apart", GPT2, {"rows": [16, 16, 8], "width": None}, "its parts have 40"),
        ("gpt2", "apart", GPT2, {"rows": [48], "width": None}, "two to eight"),
        ("gpt2", "apart", GPT2, {"rows": [24, 16, 8], "width": 4}, "equal multiples of 4"),
        ("gpt2", "apart", GPT2, {"rows": [16, 16, 16], "width": 0}, "null or from 1"),
        ("gpt2", "apart", GPT2, {"rows": "48", "width": None}, "two to eight"),
        ("gpt2", "apart", "transformer.h", {"rows": [16, 16, 16], "width": None}, "should be a linear layer"),
    ],
)
def test_a_blueprint_with_anything_else_is_refused(family, op, module, options, words):
    model = families.made(family)
    entry = {"op": op, "module": module, "options": options}

    def load() -> None:
        Blueprint(edits=[Edit.from_dict(entry)]).apply(model)

    with pytest.raises(CookError, match=words):
        load()
    assert not any(isinstance(each, LowRank | Apart) for each in model.modules())


def test_factors_are_factorised_only_once():
    model = low("bert")
    edit = Edit("lowrank", LINEAR, {"rank": 2})
    with pytest.raises(CookError, match="it is LowRank"):
        Blueprint(edits=[edit]).apply(model)


def test_t5_in_half_precision_knows_the_type_of_its_last_layer(tmp_path):
    """T5 keeps `wo` in float32 and asks for its weight's type in every forward."""
    model = low("t5")
    assert any(name.endswith("wo.up") and is_linear(each) for name, each in model.named_modules())
    model.save_pretrained(tmp_path)
    back: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float16).eval()
    types = {name: p.dtype for name, p in back.named_parameters() if ".wo." in name}
    assert set(types.values()) == {torch.float32}
    torch.testing.assert_close(logits(back, "t5").float(), logits(model, "t5"), rtol=0, atol=0.5)


def test_a_conv1d_becomes_plain_linears():
    model = low("gpt2", "apart")
    inside = Anatomy(model).layers
    names = [name for name in linears(model) if name.startswith(tuple(inside))]
    assert not any(isinstance(each, Conv1D) for each in model.modules())
    assert all(matrix(each) is each.weight for n, each in model.named_modules() if is_linear(each) and n)
    assert len(names) == 8
