"""Where the parts of each family are, against the modules that transformers builds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from cook.errors import CookError
from cook.model.arch.anatomy import FAMILIES, Anatomy
from tests.helpers import tiny

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "pad_token_id": 0,
    "dim": 16,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 32,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 4,
    "num_layers": 3,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "ffn_dim": 32,
    "word_embed_proj_dim": 16,
}
HEADLESS = {"vit"}  # has no text head
LAYERS = {"albert": 1, "t5": 6, "bart": 6}
"""ALBERT has one layer that runs three times; encoder and decoder have three each."""


def meta(kind: str, auto=AutoModel) -> nn.Module:
    known = set(AutoConfig.for_model(kind).to_dict())
    config = AutoConfig.for_model(kind, **{name: size for name, size in SIZES.items() if name in known})
    with torch.device("meta"):
        return auto.from_config(config)


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_every_family_has_all_its_parts(kind):
    model = meta(kind)
    anatomy = Anatomy(model)
    assert len(anatomy.layers) == LAYERS.get(kind, 3)
    for word in ("layers", "attention", "ffn", "embeddings", "layers[-1].attention", "layers.ffn"):
        for name in anatomy.roots(word):
            model.get_submodule(name)
    # Attention and FFN hold, between them, every linear layer of a layer.
    inside = anatomy.roots("layers[0].attention") + anatomy.roots("layers[0].ffn")
    for name, module in model.get_submodule(anatomy.layers[0]).named_modules(prefix=anatomy.layers[0]):
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            assert any(name.startswith(f"{root}.") or name == root for root in inside), name
    assert anatomy.roots("head") == []


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - HEADLESS))
def test_a_head_shifts_every_name_and_is_found(kind):
    bare = Anatomy(meta(kind))
    headed = Anatomy(meta(kind, AutoModelForSequenceClassification))
    assert headed.layers == [headed.prefix + name for name in bare.layers]
    assert headed.prefix.endswith(".")
    heads = headed.roots("head")
    assert heads
    outside = [
        name for name, _ in headed.model.named_modules() if name and not f"{name}.".startswith(headed.prefix)
    ]
    assert set(heads) <= set(outside)
    assert any(isinstance(headed.model.get_submodule(name), nn.Linear) for name in outside)


@settings(max_examples=80, deadline=None)
@given(first=st.none() | st.integers(-6, 6), last=st.none() | st.integers(-6, 6))
def test_ranges_count_as_python_does(first, last):
    anatomy = Anatomy(_FOUR)
    word = f"layers[{'' if first is None else first}:{'' if last is None else last}]"
    expected = anatomy.layers[first:last]
    if expected:
        assert anatomy.roots(word) == expected
    else:
        with pytest.raises(CookError, match="selects none of the model's 4 layers"):
            anatomy.roots(word)


_FOUR = tiny.model("bert", layers=4)


def test_single_layers():
    anatomy = Anatomy(_FOUR)
    assert anatomy.roots("layers[-1]") == ["bert.encoder.layer.3"]
    assert anatomy.roots("layers[2].ffn") == [
        "bert.encoder.layer.2.intermediate",
        "bert.encoder.layer.2.output",
    ]
    for word in ("layers[4]", "layers[-5]"):
        with pytest.raises(CookError, match="4 layers, 0 to 3"):
            anatomy.roots(word)
    with pytest.raises(CookError, match="no part 'heads'") as caught:
        anatomy.roots("layers[0].heads")
    assert "attention and ffn" in caught.value.hint


@pytest.mark.parametrize(
    "word", ["encoder", "layersx", "layers[1", "layers[a]", "Linear", "*.query", "ffn.x", "layer"]
)
def test_other_words_are_no_anatomy(word):
    assert Anatomy(_FOUR).roots(word) is None


def test_an_unknown_family_says_what_is_known():
    anatomy = Anatomy(nn.Sequential(nn.Linear(2, 2)))
    assert anatomy.kind == "Sequential"
    assert anatomy.prefix == ""
    with pytest.raises(CookError, match="'Sequential' model") as caught:
        anatomy.roots("ffn")
    assert "bert" in caught.value.hint
    assert "glob" in caught.value.hint
