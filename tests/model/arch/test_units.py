"""Heads and neurons of every family: what belongs to them, held at zero and taken out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

from cook.errors import CookError
from cook.model.arch import units
from cook.model.arch.anatomy import Anatomy, inferred
from cook.model.arch.families import FAMILIES
from cook.model.edits import removal
from cook.model.hub.quantizer import attach_quantizer, blueprint_of
from tests.helpers import families
from tests.helpers.reshaped import own_memory

FAMILY_AND_ATTENTION = [
    (family, attention)
    for family in families.ALL
    for attention in ("eager", "sdpa")
    if attention == families.ATTENTION.get(family, attention)
]


def all_units(model: nn.Module) -> list[units.UnitGroup]:
    anatomy = Anatomy(model)
    return units.heads(anatomy) + units.neurons(anatomy)


def drawn(found: list[units.UnitGroup], seed: int = 0) -> list[Tensor]:
    """Which units stay: some of each, never all where there are several."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for each in found:
        keep = torch.rand(each.count, generator=generator) < 0.6
        one, other = torch.randperm(each.count, generator=generator)[:2].tolist()
        keep[one], keep[other] = True, False
        kept.append(keep)
    return kept


@torch.no_grad()
def held(model: nn.Module, found: list[units.UnitGroup], kept: list[Tensor]) -> nn.Module:
    for each, keep in zip(found, kept, strict=True):
        for name, mask in units.masks(model, each, keep):
            model.get_parameter(name).mul_(mask)
    return model


@torch.no_grad()
def logits(model: nn.Module, family: str) -> Tensor:
    return model(**families.batch(family)).logits


def pruned(family: str, attention: str = "sdpa"):
    """A model, the same with units at zero, the same without them, and the edits that took them out."""
    model = families.made(family, families.ATTENTION.get(family, attention))
    found = all_units(model)
    kept = drawn(found)
    edits, cut = [], copy.deepcopy(model)
    for each, keep in zip(found, kept, strict=True):
        edits += removal.remove(cut, each, keep)[0]
    return model, held(copy.deepcopy(model), found, kept), cut, edits


@pytest.mark.parametrize(("family", "attention"), FAMILY_AND_ATTENTION)
def test_taking_units_out_is_holding_them_at_zero(family, attention):
    model, masked, cut, _ = pruned(family, attention)
    assert cut.config._attn_implementation == attention
    torch.testing.assert_close(logits(cut, family), logits(masked, family), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(cut, family), logits(model, family), atol=1e-3)


@pytest.mark.parametrize("family", families.ALL)
def test_a_unit_is_as_large_as_what_leaves_with_it(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    for each in all_units(model):
        cut = copy.deepcopy(model)
        keep = torch.arange(each.count) != 1
        removal.remove(cut, each, keep)
        gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in cut.parameters())
        assert gone == units.weights(model, each)
        names = [part.module for part in each.parts]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("family", families.ALL)
def test_a_head_is_what_attention_computes_by_itself(family):
    """Heads against a reference that knows no rows: closing one head of the attention's own output."""
    model = families.made(family, "eager")
    found = units.heads(Anatomy(model))
    each = found[-1]
    keep = torch.arange(each.count) != 1
    closed = held(copy.deepcopy(model), [each], [keep])
    handles = []
    for part in each.outputs:

        def close(module, inputs, size=part.spans[0][1]):
            apart = inputs[0].unflatten(-1, (each.count, size)).clone()
            apart[..., 1, :] = 0
            return (apart.flatten(-2),)

        handles.append(model.get_submodule(part.module).register_forward_pre_hook(close))
    torch.testing.assert_close(logits(closed, family), logits(model, family), rtol=0, atol=1e-5)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", families.ALL)
def test_it_reloads(family, tmp_path):
    _, _, cut, edits = pruned(family)
    blueprint = blueprint_of(cut)
    for edit in edits:
        blueprint.append(edit)
    attach_quantizer(cut, blueprint)
    cut.save_pretrained(tmp_path / "once")
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    again = auto.from_pretrained(tmp_path / "once", attn_implementation=cut.config._attn_implementation)
    assert torch.equal(logits(own_memory(again), family), logits(cut, family))
    again.save_pretrained(tmp_path / "twice", max_shard_size="5KB")
    assert len(list((tmp_path / "twice").glob("*.safetensors"))) > 1
    twice = auto.from_pretrained(tmp_path / "twice", attn_implementation=cut.config._attn_implementation)
    assert torch.equal(logits(own_memory(twice), family), logits(cut, family))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma"])
def test_a_key_takes_all_its_queries_along(family):
    model = families.made(family)
    first = units.heads(Anatomy(model))[0]
    assert (first.count, first.heads) == (2, 2)


def test_layers_that_share_a_position_bias_keep_the_same_heads():
    model = families.made("t5")
    found = units.heads(Anatomy(model))
    assert [len(each.layers) for each in found] == [2, 2, 2]  # encoder, decoder, the decoder at the encoder
    keep = torch.tensor([True, False, True, False])
    for each in found:
        removal.remove(model, each, keep)
    bias = model.transformer.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    assert bias.weight.shape[1] == 2
    assert model.transformer.decoder.block[1].layer[1].EncDecAttention.n_heads == 2


def test_a_count_of_the_config_changes_for_one_layer_alone():
    model = families.made("phi3")
    removal.remove(model, units.heads(Anatomy(model))[1], torch.tensor([True, False]))
    first, second = (layer.self_attn for layer in model.model.layers)
    assert (first.config.num_attention_heads, second.config.num_attention_heads) == (4, 2)
    assert model.config.num_attention_heads == 4
    model.set_attn_implementation("eager")
    assert second.config._attn_implementation == "eager"
    twin = copy.deepcopy(model)
    assert twin.model.layers[1].self_attn.config.num_attention_heads == 2
    assert torch.equal(logits(twin, "phi3"), logits(model, "phi3"))


def test_a_family_without_an_entry_is_inferred_from_its_layers(monkeypatch):
    known = families.made("llama")
    entry = {name: family for name, family in FAMILIES.items() if name != "llama"}
    monkeypatch.setattr("cook.model.arch.anatomy.FAMILIES", entry)
    assert Anatomy(known).layers == ["model.layers.0", "model.layers.1"]
    found = all_units(known)
    kept = drawn(found)
    masked = held(copy.deepcopy(known), found, kept)
    for each, keep in zip(found, kept, strict=True):
        removal.remove(known, each, keep)
    torch.testing.assert_close(logits(known, "llama"), logits(masked, "llama"), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("olmo2", families.SETTINGS["llama"]),  # norms over all heads together
        ("mixtral", {**families.SETTINGS["llama"], "num_local_experts": 2}),  # experts
        ("phi", families.SETTINGS["opt"]),  # modules of other names
    ],
)
def test_what_could_be_something_else_is_not_inferred(kind, settings):
    known = set(AutoConfig.for_model(kind).to_dict())
    config = AutoConfig.for_model(kind, **{key: value for key, value in settings.items() if key in known})
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert inferred(model) is None
    with pytest.raises(CookError, match=f"parts of a {kind!r} model"):
        units.heads(Anatomy(model))


def test_projections_that_are_no_whole_number_of_heads():
    model = families.made("bert")
    model.bert.encoder.layer[0].attention.self.attention_head_size = 5
    with pytest.raises(CookError, match="no whole number of 5"):
        units.heads(Anatomy(model))
