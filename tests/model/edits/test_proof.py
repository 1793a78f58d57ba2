"""Heads of families without an entry: proved on a layer with random weights, or refused."""

from __future__ import annotations

import pytest
import torch
import transformers as T

import cook
from cook.errors import CookError
from cook.model.arch import units
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.families import FAMILIES
from cook.model.edits import removal
from cook.model.edits.proof import prove

C = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
G = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4}
G |= {"intermediate_size": 48, "max_position_embeddings": 64, **C}

ENCODER = {key: value for key, value in G.items() if key != "num_key_value_heads"}

WRONG = {
    "gpt_bigcode": lambda: T.GPTBigCodeForCausalLM(
        T.GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=64, multi_query=False, **C)
    ),
    "diffllama": lambda: T.DiffLlamaForCausalLM(T.DiffLlamaConfig(**G)),
    "xglm": lambda: T.XGLMForCausalLM(
        T.XGLMConfig(d_model=32, num_layers=2, attention_heads=4, ffn_dim=48, max_position_embeddings=64, **C)
    ),
    "beit": lambda: T.BeitForImageClassification(
        T.BeitConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=16,
            patch_size=8,
            use_relative_position_bias=True,
        )
    ),
}
RIGHT = {
    "granite": lambda: T.GraniteForCausalLM(T.GraniteConfig(**G)),
    "olmo": lambda: T.OlmoForCausalLM(T.OlmoConfig(**G)),
    "stablelm": lambda: T.StableLmForCausalLM(T.StableLmConfig(**G)),
    "camembert": lambda: T.CamembertForMaskedLM(T.CamembertConfig(**ENCODER)),
    "layoutlm": lambda: T.LayoutLMForSequenceClassification(T.LayoutLMConfig(**ENCODER)),
    "megatron-bert": lambda: T.MegatronBertForMaskedLM(T.MegatronBertConfig(**ENCODER)),
    "roformer": lambda: T.RoFormerForMaskedLM(T.RoFormerConfig(**ENCODER)),
    "esm": lambda: T.EsmForMaskedLM(T.EsmConfig(**ENCODER)),
    "yoso": lambda: T.YosoForMaskedLM(T.YosoConfig(**ENCODER)),
}
HALF = {"sparsity": 0.5, "scope": "layer", "importance": "magnitude"}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("step", ["prune.heads", "prune.units"])
def test_heads_that_names_tell_wrongly_are_refused_before_anything_changes(kind, step):
    torch.manual_seed(0)
    model = WRONG[kind]().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = HALF if step == "prune.heads" else {"budget": {"parameters": 0.8}, "importance": "magnitude"}
    with pytest.raises(CookError, match=kind):
        cook.apply(model, {"version": 1, "passes": [{step: options}]})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", RIGHT)
def test_heads_and_neurons_of_inferred_families(kind):
    torch.manual_seed(0)
    model = RIGHT[kind]().eval()
    assert kind not in FAMILIES
    anatomy = Anatomy(model)
    prove(anatomy, units.units(anatomy))
    with torch.device("meta"):
        bare = Anatomy(RIGHT[kind]())
    prove(bare, units.units(bare))
    half = [{"prune.heads": HALF}, {"prune.neurons": {**HALF, "multiple": 1}}]
    done = cook.apply(model, {"version": 1, "passes": half}).model
    assert done.num_parameters() < sum(each.numel() for each in RIGHT[kind]().parameters())
    done(input_ids=torch.randint(3, 40, (2, 7)))


def test_a_model_that_draws_in_every_forward_is_compared_with_the_same_draws():
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = T.ViTMAEModel(T.ViTMAEConfig(**size, image_size=16, patch_size=8)).eval()
    state = torch.get_rng_state()
    cook.apply(model, {"version": 1, "passes": [{"prune.heads": HALF}]})
    assert torch.equal(torch.get_rng_state(), state)


def test_trying_units_out_leaves_the_model_as_it_was():
    model = RIGHT["granite"]().eval()
    anatomy = Anatomy(model)
    before = {name: (value, value.clone()) for name, value in model.named_parameters()}
    sizes = {name: str(module) for name, module in model.named_modules()}
    prove(anatomy, units.units(anatomy))
    after = dict(model.named_parameters())
    assert all(after[name] is value and torch.equal(value, copy) for name, (value, copy) in before.items())
    assert {name: str(module) for name, module in model.named_modules()} == sizes


def test_a_model_without_an_example_needs_one_for_calibration():
    model = RIGHT["granite"]().eval()
    anatomy = Anatomy(model)
    model.main_input_name = "rays"
    with pytest.raises(CookError, match="has no example") as caught:
        prove(anatomy, units.heads(anatomy))
    assert "calibration=" in caught.value.hint
    prove(anatomy, units.heads(anatomy), lambda: iter([{"input_ids": torch.tensor([[3, 4, 5]])}]))


def test_a_finished_model_that_gives_something_else_is_not_handed_out(monkeypatch):
    from cook.errors import RunError

    right = removal.remove

    def wrong(model, group, keep):
        return right(model, group, keep.roll(1))

    monkeypatch.setattr(removal, "remove", wrong)
    from tests.helpers import tiny

    model = tiny.model()
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.ndim == 2 else 1)
    with pytest.raises(RunError, match="finishing moved the output"):
        cook.apply(model, {"version": 1, "passes": [{"prune.heads": HALF}]})
