"""Shared parameters on their way through folders: one copy on disk, one Parameter after loading."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from cook.errors import CookError
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.hub import folder
from cook.model.hub.quantizer import attach_quantizer, blueprint_of
from cook.model.nn import sharing, surgery
from cook.model.nn.integer import IntLinear
from cook.model.probe.measure import tally
from tests.helpers import bound, families, tiny
from tests.helpers.reshaped import auto_class, inputs, logits

KINDS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"share.layers": {"groups": 2}}],
    "attention": [{"share.layers": {"groups": 2, "parts": "attention"}}],
    "residual": [{"share.layers": {"groups": "all", "residual": 2}}],
    "integers": [{"share.layers": {"groups": 2}}, {"quant.qat": {}}],
    "static": [
        {"share.layers": {"groups": 2, "residual": 2}},
        {"quant.qat": {"observer": "moving", "freeze": 2}},
    ],
}


def made(family: str, kind: str, *, layers: int = 4) -> Any:
    """A tiny model that shares, trained for three steps and finished."""
    model = tiny.model(family, layers=layers)
    session = bound.session(model, *KINDS[kind], steps=3)
    bound.train(session, family)
    session.finish()
    return model.eval()


def groups(model: nn.Module) -> set[frozenset[str]]:
    """The names of parameters that are one."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(each) for each in names.values() if len(each) > 1}


def loaded(path: Any, family: str = "bert", **options: Any) -> Any:
    return getattr(transformers, auto_class(family)).from_pretrained(path, **options)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_copy_on_disk_and_one_parameter_after_loading(tmp_path, family, kind):
    model = made(family, kind)
    assert groups(model)
    model.save_pretrained(tmp_path / "once")
    assert folder.weight_bytes(tmp_path / "once") == tally(model).bytes
    once = loaded(tmp_path / "once", family)
    once.save_pretrained(tmp_path / "twice", max_shard_size="2KB")
    assert len(list((tmp_path / "twice").glob("*.safetensors"))) > 1
    assert folder.weight_bytes(tmp_path / "twice") == tally(model).bytes
    twice = loaded(tmp_path / "twice", family)
    for each in (once, twice):
        assert torch.equal(logits(each, family), logits(model, family))
        assert groups(each) == groups(model)
        assert tally(each) == tally(model)
        assert blueprint_of(each) == blueprint_of(model)
        assert {n: p.requires_grad for n, p in each.named_parameters()} == {
            n: p.requires_grad for n, p in model.named_parameters()
        }


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["plain", "static"])
def test_a_base_model_and_a_head_share_too(tmp_path, family, kind):
    model = made(family, kind)
    model.save_pretrained(tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head")
    assert groups(base) == groups(model.base_model)
    wanted = model.base_model(**inputs(family)).last_hidden_state
    assert torch.equal(base(**inputs(family)).last_hidden_state, wanted)
    base.save_pretrained(tmp_path / "base")
    headed = loaded(tmp_path / "base", family)
    assert groups(headed) == groups(model)
    assert torch.equal(headed.base_model(**inputs(family)).last_hidden_state, wanted)
    model.base_model.save_pretrained(tmp_path / "own")
    own = AutoModel.from_pretrained(tmp_path / "own")
    assert groups(own) == groups(model.base_model)
    assert torch.equal(own(**inputs(family)).last_hidden_state, wanted)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_half_precision_and_device_maps_share_too(tmp_path, family):
    model = made(family, "residual")
    model.save_pretrained(tmp_path)
    for options in ({"dtype": torch.bfloat16}, {"device_map": "cpu"}, {"device_map": "auto"}):
        back = loaded(tmp_path, family, **options)
        assert groups(back) == groups(model)
        if "dtype" not in options:
            assert torch.equal(logits(back.to("cpu"), family), logits(model, family))


def test_offloaded_to_disk(tmp_path):
    model = made("bert", "plain")
    model.save_pretrained(tmp_path / "model")
    places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu", "classifier": "cpu"}
    back = loaded(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk")
    assert torch.equal(logits(back, "bert"), logits(model, "bert"))


def test_copies_pickles_and_casts_share_too(tmp_path):
    made("bert", "residual").save_pretrained(tmp_path)
    model = loaded(tmp_path)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).half()):
        assert groups(twin) == groups(model)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert 2 * folder.weight_bytes(tmp_path / "half") == folder.weight_bytes(tmp_path)


def test_floats_of_shared_integers_are_shared(tmp_path):
    model = made("gpt2", "integers")
    model.save_pretrained(tmp_path / "integers")
    floats = loaded(tmp_path / "integers", "gpt2").dequantize()
    assert not any(isinstance(each, IntLinear) for each in floats.modules())
    floats.save_pretrained(tmp_path / "floats")
    assert folder.weight_bytes(tmp_path / "floats") == tally(floats).bytes
    assert groups(loaded(tmp_path / "floats", "gpt2")) == groups(floats)
    assert tally(floats).parameters == tally(model).parameters


def test_tying_by_transformers_leaves_all_as_it_is(tmp_path):
    """It cuts biases to the length of weights, which a Conv1D has the other way round."""
    torch.manual_seed(0)
    model = families.made("gpt2").eval()
    with torch.device("cpu"):
        lm = transformers.GPT2LMHeadModel(model.config).eval()
    session = bound.session(lm, {"share.layers": {"groups": "all"}}, steps=0)
    session.finish()
    tokens = torch.arange(5, 11)[None]
    wanted = lm(tokens).logits
    lm.tie_weights()
    lm.save_pretrained(tmp_path)
    back = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    back.tie_weights()
    assert {len(each) for each in groups(back)} == {2}
    assert groups(back) == groups(lm)
    assert torch.equal(back(tokens).logits, wanted)


def test_a_process_without_cook_refuses_the_folder(tmp_path, clean_processes):
    made("bert", "plain").save_pretrained(tmp_path)
    assert clean_processes.refusal("AutoModelForSequenceClassification", tmp_path)


def blueprint(*edits: tuple[str, str, dict[str, Any]]) -> Blueprint:
    return Blueprint.from_dict(
        {
            "version": 1,
            "edits": [{"op": op, "module": module, "options": options} for op, module, options in edits],
            "inner": None,
            "lock": None,
        }
    )


AT = "bert.encoder.layer."


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([("share", f"{AT}1.output.dense", {"of": f"{AT}7.output.dense"})], "no module"),
        ([("share", f"{AT}1.output.dense", {"of": f"{AT}0.intermediate.dense"})], "same parameters"),
        ([("share", f"{AT}1.output.dense", {"of": f"{AT}1.output.dense"})], "same parameters"),
        ([("share", f"{AT}1.output", {"of": f"{AT}0.output"})], "same parameters"),
        ([("share", f"{AT}1.output.dense", {"of": "a..b"})], "of is 'a..b', it must be a module name"),
        ([("share", f"{AT}1.output.dense", {"of": 3})], "of is 3"),
        ([("share", f"{AT}1.output.dense", {})], "of is missing"),
        ([("residual", f"{AT}1.output.dense", {"rank": 0})], "rank is 0"),
        ([("residual", f"{AT}1.output.dense", {"rank": 17})], "rank 17 does not fit"),
        ([("residual", f"{AT}1.output.LayerNorm", {"rank": 1})], "should be a linear layer"),
    ],
)
def test_what_comes_from_strangers_is_checked(edits, words):
    with pytest.raises(CookError, match=words):
        blueprint(*edits).apply(tiny.model())


def test_a_shared_lock_is_refused(tmp_path):
    model = made("bert", "plain")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["blueprint"]["lock"] = f"{AT}1.output.LayerNorm.weight"
    file.write_text(json.dumps(config))
    with pytest.raises(CookError, match="is shared"):
        loaded(tmp_path)


def test_a_folder_with_two_copies_that_differ_is_refused(tmp_path):
    model = made("bert", "plain")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state[f"{AT}1.output.dense.weight"] = state[f"{AT}0.output.dense.weight"] + 1
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CookError, match=r"holds two of .*layer\.0\.output\.dense\.weight"):
        loaded(tmp_path)


def test_sharing_in_a_circle_is_sharing():
    model = tiny.model()
    one, other = f"{AT}0.output.dense", f"{AT}1.output.dense"
    circle = blueprint(("share", other, {"of": one}), ("share", one, {"of": other})).apply(model)
    assert sharing.ties(model, circle.shared) == {
        f"{other}.{key}": f"{one}.{key}" for key in ("weight", "bias")
    }


def test_a_torn_pair_is_found():
    model = tiny.model()
    pair = f"{AT}1.output.dense", f"{AT}0.output.dense"
    sharing.share(model, *pair)
    assert sharing.torn(model, [pair]) is None
    surgery.replace(model, pair[0], nn.Linear(32, 16))
    assert sharing.torn(model, [pair]) == pair
    with pytest.raises(CookError, match="share their parameters"):
        sharing.check(model, [pair])


def sizes(model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    return [model.get_parameter(f"{name}.weight") for name in names]


def test_resizing_one_resizes_all():
    model = tiny.model()
    names = f"{AT}0.intermediate.dense", f"{AT}1.intermediate.dense"
    made_ = [("share", names[1], {"of": names[0]})]
    made_ += [("resize", name, {"in": 16, "out": 9}) for name in names]
    blueprint(*made_).apply(model)
    one, other = sizes(model, names)
    assert one is other
    assert one.shape == (9, 16)


def test_a_shared_model_in_memory_is_saved_by_whoever_ties_it(tmp_path):
    model = tiny.model()
    edits = [Edit("share", f"{AT}1.output.dense", {"of": f"{AT}0.output.dense"})]
    attach_quantizer(model, Blueprint(edits=edits).apply(model))
    model.save_pretrained(tmp_path)
    assert groups(loaded(tmp_path)) == groups(model)
