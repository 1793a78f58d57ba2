"""Sharing as a pass: gradients, decoders with a cache, what is told, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MarianConfig, MarianMTModel, OPTConfig, OPTForCausalLM

import cook
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.families import FAMILIES
from cook.model.hub import folder
from cook.model.probe.measure import macs, tally
from cook.pipeline.plan import plan_passes
from tests.helpers import bound, families, tiny
from tests.helpers.reshaped import own_memory

DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "opt", "gpt_neox")


def shared(model: Any, steps: int = 0, **options: Any) -> Any:
    """A session in which layers share; all of them unless told otherwise."""
    return bound.session(model, {"share.layers": {"groups": "all", **options}}, steps=steps)


def unshared(model: Any) -> Any:
    """The same values, each layer with parameters of its own."""
    other = copy.deepcopy(model)
    for module in other.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    return other


def by_parameter(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("residual", [0, 2])
def test_gradients_are_the_sums_over_the_layers(family, residual):
    model = tiny.model(family, layers=4).eval()
    shared(model, groups=2, residual=residual)
    apart = unshared(model)
    for each in (model, apart):
        each(**tiny.batch(family)).loss.backward()
    counted = 0
    for names in by_parameter(model).values():
        gradients = [apart.get_parameter(name).grad for name in names]
        if any(each is None for each in gradients):
            continue
        found = model.get_parameter(names[0]).grad
        torch.testing.assert_close(found, torch.stack(gradients).sum(0), rtol=0, atol=1e-6)
        counted += len(names) == 2
    assert counted > 8


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_optimizer_has_each_parameter_once_and_layers_train_in_step(family):
    model = tiny.model(family, layers=4)
    session = shared(model, 4)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    bound.train(session, family)
    optimizer = torch.optim.AdamW(session.module.parameters())
    assert (
        sum(each.numel() for group in optimizer.param_groups for each in group["params"])
        == tally(model).parameters
    )
    names = [names for names in by_parameter(model).values() if len(names) == 4]
    assert names
    for first, *others in names:
        assert not torch.equal(model.get_parameter(first), before[first])
        assert all(model.get_parameter(name) is model.get_parameter(first) for name in others)


def test_gradient_checkpointing_gives_the_same_gradients():
    found = []
    for recomputed in (False, True):
        model = tiny.model(layers=4)
        session = shared(model, 1)
        for each in model.modules():
            if isinstance(each, nn.Dropout):
                each.p = 0.0
        model.train()
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        session.module(tiny.batch())["task"].backward()
        found.append([each.grad.clone() for each in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def language(family: str) -> Any:
    torch.manual_seed(0)
    config = families.made(family, device="meta").config
    config.num_hidden_layers = 4
    config.bos_token_id = config.eos_token_id = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * 4
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def written(model: Any, cached: bool) -> Tensor:
    tokens = torch.tensor([[5, 9, 14, 7], [3, 11, 6, 20]])
    return model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        use_cache=cached,
        output_scores=True,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_generates_with_its_cache_as_without(family, tmp_path):
    model = language(family)
    shared(model, groups=2, residual=2).finish()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    wanted = written(unshared(model), True)
    assert len(set(wanted.sequences.flatten().tolist())) > 3
    for each in (written(model, True), written(model, False), written(again, True)):
        assert torch.equal(each.sequences, wanted.sequences)
        for one, other in zip(each.scores, wanted.scores, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(written(model, True).scores, wanted.scores, strict=True))


@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(tiny.FAMILIES),
    parts=st.sampled_from(["all", "attention", "ffn"]),
    init=st.sampled_from(["mean", "first", "best"]),
)
def test_equal_layers_that_share_are_the_same_model(family, parts, init):
    model = tiny.model(family, layers=3).eval()
    layers = [model.get_submodule(name) for name in Anatomy(model).layers]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    before = bound.logits(model, family)
    session = shared(model, parts=parts, init=init)
    session.finish()
    assert torch.equal(bound.logits(model, family), before)
    assert set(session.facts["share.layers"]["distance"].values()) == {0.0}


@torch.no_grad()
def apart_by(model: Any, rank: int) -> Any:
    """Its layers are the first one, and matrices of a rank beside it."""
    layers = [model.get_submodule(name) for name in Anatomy(model).layers]
    for layer in layers:
        for name, parameter in layer.named_parameters():
            parameter.copy_(layers[0].get_parameter(name))
            if parameter.ndim == 2 and layer is not layers[0]:
                out, columns = parameter.shape
                parameter += torch.randn(out, rank) @ torch.randn(rank, columns) / 10
    return model.eval()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("init", ["mean", "first", "best"])
def test_residuals_that_hold_all_differences_give_the_outputs_of_before(family, init):
    model = apart_by(tiny.model(family, layers=3), 2)
    before = bound.logits(model, family)
    session = shared(model, init=init, residual=4)
    session.finish()
    torch.testing.assert_close(bound.logits(model, family), before, rtol=0, atol=1e-5)
    facts = session.facts["share.layers"]
    assert max(facts["distance"].values()) > 0.1
    assert max(facts["distance_with_residual"].values()) < 1e-5


def test_residuals_that_hold_less_are_nearer_all_the_same():
    model = tiny.model(layers=4)
    whole = shared(model, residual=3, groups=2).passes[0].distances
    assert all(0 < left < far for far, left in whole.values())


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("residual", [0, 2])
def test_the_plan_tells_sizes_and_what_sharing_saves(family, residual):
    options = {"share.layers": {"groups": 2, "residual": residual}}
    with torch.device("meta"):
        meta = tiny.model(family, layers=4)
    (effect,) = [effect for _, effect in plan_passes(meta, bound.passes(options))]
    model = tiny.model(family, layers=4)
    before = tally(model).parameters
    session = bound.session(model, options, steps=0)
    session.finish()
    planned, found = tally(meta), tally(model)  # zeros are unknown without weights
    assert (planned.parameters, planned.bytes) == (found.parameters, found.bytes)
    saved = session.facts["share.layers"]["saved"]
    assert saved == before - tally(model).parameters > 0
    assert f"{saved:,} parameters fewer: saves memory, not time" in effect.note
    assert set(effect.parameters) <= set(dict(tiny.model(family, layers=4).named_parameters()))


def test_attention_and_ffn_can_share_in_groups_of_their_own():
    model = tiny.model(layers=4)
    items = (
        {"share.layers": {"groups": "all", "parts": "attention"}},
        {"share.layers": {"groups": 2, "parts": "ffn"}},
    )
    bound.session(model, *items, steps=0).finish()
    names = {frozenset(each) for each in by_parameter(model).values() if len(each) > 1}
    assert {len(each) for each in names if "attention" in min(each)} == {4}
    assert {len(each) for each in names if "attention" not in min(each)} == {2}


def test_what_others_left_out_does_not_share():
    model = tiny.model(layers=4)
    items = ({"prune.layers": {"keep": [0, 2, 3]}}, {"share.layers": {"groups": [[0, 3], [2]]}})
    session = bound.session(model, *items, steps=0)
    session.finish()
    assert session.facts["share.layers"]["groups"] == [[0, 3]]
    assert model.config.num_hidden_layers == 3
    layers = model.bert.encoder.layer
    assert layers[2].output.dense.weight is layers[0].output.dense.weight
    assert layers[1].output.dense.weight is not layers[0].output.dense.weight
    with pytest.raises(CookError, match="layer 1 is left out by another pass"):
        bound.session(tiny.model(layers=4), items[0], {"share.layers": {"groups": [[0, 1], [2, 3]]}})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": "all", "residual": 12}, "no smaller"),
        ({"groups": 2, "parts": "attention", "residual": 17}, "of no rank 17"),
    ],
)
def test_residuals_that_save_nothing_are_refused(options, words):
    with torch.device("meta"):
        meta = tiny.model(layers=4)
    passes = bound.passes({"share.layers": options})
    for act in (
        lambda: plan_passes(meta, passes),
        lambda: bound.session(tiny.model(layers=4), *[{"share.layers": options}]),
    ):
        with pytest.raises(CookError, match=words) as caught:
            act()
        assert caught.value.where == "<dict>: passes[0].residual"
        assert "smaller rank" in caught.value.hint


@pytest.mark.parametrize("groups", [1, 0, [], [[]], "every", None, [["a"]]])
def test_groups_of_no_sense_are_refused_by_the_schema(groups):
    with pytest.raises(CookError, match="groups"):
        bound.passes({"share.layers": {"groups": groups}})


def test_as_much_is_computed_as_before_and_it_is_said():
    model = tiny.model(layers=4)
    before = macs(model, tiny.batch())
    session = shared(model)
    assert macs(model, tiny.batch()) == before
    session.finish()
    facts = session.facts["share.layers"]
    fewer = f"{facts['saved']:,} parameters fewer"
    assert facts["note"] == f"4 layers in 1 group, {fewer}; sharing saves memory, not time"
    assert facts["groups"] == [[0, 1, 2, 3]]
    assert set(facts["distance"]) == {"0", "1", "2", "3"}


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"albert"}))
@pytest.mark.parametrize("residual", [0, 1])
def test_every_family_shares_and_comes_back(family, residual, tmp_path):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    count = tally(model).parameters
    session = shared(model, residual=residual)
    session.finish()
    batch = families.batch(family)
    with torch.no_grad():
        expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    assert folder.weight_bytes(tmp_path) == tally(model).bytes
    assert tally(model).parameters == count - session.facts["share.layers"]["saved"]
    attention = {"attn_implementation": families.ATTENTION.get(family, "sdpa")}
    back = type(model).from_pretrained(tmp_path, **attention).eval()
    assert tally(back) == tally(model)
    with torch.no_grad():
        assert torch.equal(own_memory(back)(**batch).logits, expected)


def test_a_model_without_norms_of_its_own_has_another_lock(tmp_path):
    config = OPTConfig(**families.SETTINGS["opt"], do_layer_norm_before=False)
    model = OPTForCausalLM(config).eval()
    shared = cook.apply(model, {"version": 1, "passes": [{"share.layers": {"groups": "all"}}]}).model
    shared.save_pretrained(tmp_path)
    tokens = torch.arange(5, 11)[None]
    with torch.no_grad():
        assert torch.equal(
            OPTForCausalLM.from_pretrained(tmp_path).eval()(tokens).logits, shared(tokens).logits
        )


def test_nothing_left_to_lock_is_refused_before_training():
    settings = {**families.SETTINGS["bart"], "max_position_embeddings": 32}
    model = MarianMTModel(MarianConfig(**settings))
    before = sum(each.numel() for each in model.parameters())
    with pytest.raises(CookError, match="every parameter of this MarianMTModel is shared"):
        cook.attach(model, {"version": 1, "passes": [{"share.layers": {"groups": "all"}}]}, total_steps=10)
    assert sum(each.numel() for each in model.parameters()) == before
