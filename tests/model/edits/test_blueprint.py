"""The Blueprint as untrusted input, and the edits that it makes."""

import json
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel

from cook.errors import CookError
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import MAX_SIZE, Edit
from cook.model.nn import linear, surgery
from cook.model.nn.integer import IntLinear
from tests.helpers import tiny
from tests.helpers.reshaped import FFN, make

INTEGER = {"bits": 4, "activation": {"bits": 8, "kind": "token"}, "in": 16, "out": 16, "bias": True}
GOOD: dict[str, Any] = {
    "version": 1,
    "edits": [
        {"op": "integer", "module": "bert.pooler.dense", "options": INTEGER},
        {"op": "resize", "module": "classifier", "options": {"in": 16, "out": 3}},
    ],
    "inner": None,
    "lock": "bert.embeddings.LayerNorm.weight",
}
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["integer", "resize", "token", "version", "classifier", 1, 8, MAX_SIZE, MAX_SIZE + 1]),
)
KEYS = st.one_of(
    st.text(max_size=4), st.sampled_from(["op", "module", "options", "in", "out", "bits", "kind", "edits"])
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    copy = json.loads(json.dumps(value))
    target = copy
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = new
    return copy


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(list(places(GOOD))), new=JUNK)
def test_junk_gives_a_blueprint_or_one_error(path, new):
    value = changed(GOOD, path, new)
    with suppress(CookError):
        read = Blueprint.from_dict(value)
        assert Blueprint.from_dict(json.loads(json.dumps(read.to_dict()))) == read


def test_a_blueprint_survives_json():
    read = Blueprint.from_dict(json.loads(json.dumps(GOOD)))
    assert read.to_dict() == GOOD


@pytest.mark.parametrize(
    ("path", "new", "words"),
    [
        (("version",), 2, "upgrade cook"),
        (("version",), True, "version"),
        (("inner",), {"quant_method": "gptq"}, "upgrade cook"),
        (("edits", 0, "op"), "factor", "upgrade cook"),
        (("edits", 0, "op"), ["integer"], "no edit"),
        (("edits",), [GOOD["edits"][1]] * 100_001, "at most"),
        (("edits", 0, "module"), "a..b", "no module name"),
        (("edits", 0, "module"), "a" * 600, "no module name"),
        (("edits", 0, "options", "in"), MAX_SIZE + 1, "in is"),
        (("edits", 0, "options", "out"), 0, "out is"),
        (("edits", 0, "options", "bits"), 9, "from 2 to 8"),
        (("edits", 0, "options", "bits"), True, "from 2 to 8"),
        (("edits", 0, "options", "activation"), {"bits": 8, "kind": "dynamic"}, "token or static"),
        (("edits", 0, "options", "more"), 1, "unknown key"),
        (("lock",), "weight", "no parameter name"),
        ((), [], "must be a mapping"),
    ],
)
def test_each_mistake_is_named(path, new, words):
    with pytest.raises(CookError, match=words):
        Blueprint.from_dict(changed(GOOD, path, new))


def test_append_checks_the_edit():
    with pytest.raises(CookError, match="missing"):
        Blueprint().append(Edit("resize", "a", {"in": 1}))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_apply_gives_the_structure_back_on_meta(family):
    model = make(family, "both")
    blueprint = model.hf_quantizer.blueprint
    with torch.device("meta"):
        fresh: Any = type(model)(model.config)
    assert blueprint.apply(fresh) == blueprint
    assert {n: (p.shape, p.dtype) for n, p in fresh.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in model.named_parameters()
    }
    assert all(each.is_meta for each in fresh.parameters())


GPT2: Any = tiny.model("gpt2")


def base_model(family="bert"):
    config = tiny.model(family).config
    config.architectures = [type(tiny.model(family)).__name__]
    with torch.device("meta"):
        return AutoModel.from_config(config)


def test_a_base_model_takes_the_edits_without_prefix_and_head():
    base = base_model()
    found = Blueprint.from_dict(GOOD).apply(base)
    assert [edit.module for edit in found.edits] == ["pooler.dense"]
    assert found.lock == "embeddings.LayerNorm.weight"
    assert isinstance(surgery.get(base, "pooler.dense"), IntLinear)


@pytest.mark.parametrize("name", ["bert.encoder.layer.7.output.dense", "bert.encoder.layers.0.output.dense"])
def test_what_resolves_to_nothing_is_an_error(name):
    with pytest.raises(CookError, match="no module"):
        Blueprint(edits=[Edit("resize", name, {"in": 4, "out": 4})]).apply(base_model())


def test_the_class_that_was_saved_must_have_every_module():
    with pytest.raises(CookError, match="did you mean"):
        Blueprint(edits=[Edit("resize", "classifer", {"in": 16, "out": 4})]).apply(tiny.model())


def test_an_edit_and_its_module_agree_on_the_bias():
    options = {**INTEGER, "in": 16, "out": 2, "bias": False}
    with pytest.raises(CookError, match="whether it has a bias"):
        Blueprint(edits=[Edit("integer", "classifier", options)]).apply(tiny.model())


def test_an_edit_must_fit_its_module():
    edit = Edit("integer", "classifier", INTEGER)
    with pytest.raises(CookError, match=r"classifier should be a linear layer \(16, 16\), it is \(2, 16\)"):
        Blueprint(edits=[edit]).apply(tiny.model())


def test_an_unknown_lock_is_an_error():
    with pytest.raises(CookError, match="no parameter"):
        Blueprint(lock="classifier.gain").apply(tiny.model())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Linear(4, 6), "in_features"),
        (nn.Embedding(4, 6), "num_embeddings"),
        (GPT2.transformer.h[0].mlp.c_fc, "nx"),
    ],
)
def test_resize_keeps_what_fits(module, name):
    old = module.weight.detach().clone()
    surgery.resize(module, 3, 9)
    assert getattr(module, name) == 9
    new = module.weight.detach()
    both = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
    assert torch.equal(new[both], old[both])
    assert new.count_nonzero() == old[both].count_nonzero()
    if linear.is_linear(module):
        assert linear.shape(module) == (3, 9)
        assert module.bias.shape == (3,)


def test_resize_norms_and_nothing_else():
    norm = nn.LayerNorm(4)
    surgery.resize(norm, 3, 3)
    assert norm(torch.randn(2, 3)).shape == (2, 3)
    for module, sizes in [(norm, (3, 4)), (nn.Dropout(), (1, 1)), (IntLinear(2, 2), (1, 1))]:
        with pytest.raises(CookError):
            surgery.resize(module, *sizes)


def test_replace_and_get_name_what_is_near():
    model = tiny.model()
    old = surgery.replace(model, FFN["bert"][0], nn.Identity())
    assert isinstance(old, nn.Linear)
    with pytest.raises(CookError, match="did you mean 'classifier'"):
        surgery.get(model, "clasifier")
    with pytest.raises(CookError, match="itself"):
        surgery.replace(model, "", nn.Identity())


def test_counts_are_those_that_a_family_has():
    attention = "bert.encoder.layer.0.attention.self"
    model = tiny.model()
    Blueprint(edits=[Edit("counts", attention, {"values": {"num_attention_heads": 2}})]).apply(model)
    assert model.get_submodule(attention).num_attention_heads == 2
    for values in ({"training": 1}, {"__class__": 1}, {"num_heads": 0}, {"num_heads": True}, [1]):
        with pytest.raises(CookError, match="values is"):
            Blueprint.from_dict(
                {
                    **Blueprint().to_dict(),
                    "edits": [{"op": "counts", "module": attention, "options": {"values": values}}],
                }
            )
    with pytest.raises(CookError, match="has no number 'num_heads'"):
        Blueprint(edits=[Edit("counts", attention, {"values": {"num_heads": 2}})]).apply(model)
