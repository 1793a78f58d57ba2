"""Shapes of tensors, told without weights and with them, and what telling leaves untouched."""

import pytest
import torch
from transformers import BartConfig, BartForSequenceClassification

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.shapes import shapes
from tests.helpers import families, tiny
from tests.helpers.families import CAUSAL, NAMES
from tests.helpers.traces import differences, hooks

PARTS = ("input", "output", "attention.output", "ffn.output")
FACTORS = ("queries", "keys", "values")
ALL = [
    "embeddings.output",
    "logits",
    *(f"layers[1].{part}" for part in PARTS),
    *(f"layers[1].attention.{part}" for part in (*FACTORS, "scores")),
]
every_family = pytest.mark.parametrize("family", NAMES)


def expected(family: str) -> dict[str, tuple[int, ...]]:
    tokens = 5 if family == "vit" else 3
    grouped = 2 if family in CAUSAL[1:] else 4
    found = {"embeddings.output": (1, tokens, 16), "logits": (1, 2)}
    found.update({f"layers[1].{part}": (1, tokens, 16) for part in PARTS})
    for part, heads in zip(FACTORS, (4, grouped, grouped), strict=True):
        found[f"layers[1].attention.{part}"] = (1, heads, tokens, 4)
    return found | {"layers[1].attention.scores": (1, 4, tokens, tokens)}


@every_family
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes(family, device):
    assert shapes(Anatomy(families.made(family, device=device)), ALL) == expected(family)


@every_family
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(family, dtype):
    assert shapes(Anatomy(families.made(family, dtype=dtype)), ALL) == expected(family)
    assert shapes(Anatomy(families.made(family, device="meta", dtype=dtype)), ALL) == expected(family)


@every_family
@pytest.mark.parametrize("padding", [None, 0, 1, 22])
def test_any_padding(family, padding):
    for device in ("cpu", "meta"):
        model = families.made(family, device=device)
        model.config.pad_token_id = padding
        assert shapes(Anatomy(model), ALL) == expected(family)


@every_family
def test_eager_attention(family):
    for device in ("cpu", "meta"):
        assert shapes(Anatomy(families.made(family, "eager", device=device)), ALL) == expected(family)


def test_oblong_images_and_more_tokens():
    model = families.made("vit", image_size=(8, 12), num_channels=3)
    assert shapes(Anatomy(model), ["embeddings.output"]) == {"embeddings.output": (1, 7, 16)}
    found = shapes(Anatomy(families.made("bert")), ["layers[0].attention.scores"], tokens=7)
    assert found == {"layers[0].attention.scores": (1, 4, 7, 7)}


@every_family
def test_nothing_is_touched(family):
    model = families.made(family).train()
    next(iter(model.base_model.children())).eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    shapes(Anatomy(model), ALL)
    with pytest.raises(CookError):
        shapes(Anatomy(model), ["layers[0].output", "layers[7].output"])
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert not all(modes)
    assert any(modes)
    assert list(differences(before, model.state_dict())) == []
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert hooks(model) == {}


def test_a_head_that_asks_for_values():
    # It looks for the end of a sentence, which tensors without values cannot tell.
    config = BartConfig(
        vocab_size=23, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8
    )
    with torch.device("meta"):
        model = BartForSequenceClassification(config)
    names = {"model.encoder.layers.0[out]": (1, 3, 16), "model.decoder.layers.0[out]": (1, 3, 16)}
    assert shapes(Anatomy(model), names) == names
    with pytest.raises(CookError, match="logits: the model was not run to its end"):
        shapes(Anatomy(model), ["logits"])
    assert hooks(model) == {}


def test_a_module_that_the_forward_never_reaches():
    model = tiny.model()
    model.idle = torch.nn.Linear(1, 1)
    with pytest.raises(CookError, match="idle was not run"):
        shapes(Anatomy(model), ["idle[out]"])
    assert hooks(model) == {}


def test_a_fault_of_the_model_is_not_swallowed():
    model = tiny.model()
    model.classifier = torch.nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        shapes(Anatomy(model), ["layers[0].output"])
    assert hooks(model) == {}


@pytest.mark.parametrize("family", [name for name in families.ALL if name not in ("albert", "t5", "bart")])
def test_every_family_is_measured_without_weights(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"), device="meta")
    found = shapes(Anatomy(model), ["layers[0].output", "layers[1].output", "embeddings.output"])
    assert found["layers[1].output"][-1] == 16
