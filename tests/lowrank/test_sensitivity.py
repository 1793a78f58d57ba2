"""What layers' outputs move, against Jacobians of what is added to them, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
)

from cook.errors import CookError
from cook.lowrank.sensitivity import sensitivities
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.targets import select
from cook.model.nn.linear import shape
from tests.helpers import families
from tests.helpers.traces import hooks
from tests.model.calibration.test_layerwise import seq2seq


def jacobians(model: Any, name: str, example: dict[str, Tensor]) -> Tensor:
    """The squared Jacobian of all that counts of the output, by what a layer gives: summed, [out]."""
    module = model.get_submodule(name)
    added: list[Tensor] = []

    def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        more = torch.zeros_like(output, requires_grad=True)
        added.append(more)
        return output + more

    handle = module.register_forward_hook(hook)
    outputs = model(**example)
    handle.remove()
    if "start_logits" in outputs:
        given = torch.stack([outputs.start_logits, outputs.end_logits], -1)
    else:
        given = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    mask = example["labels"] != -100 if model.config.is_encoder_decoder else example["attention_mask"].bool()
    counted = given[mask] if given.shape[:2] == mask.shape else given
    total = torch.zeros(shape(module)[0])
    for number in counted.flatten():
        for slope in torch.autograd.grad(number, added, retain_graph=True, allow_unused=True):
            if slope is not None:
                total += slope.flatten(0, -2).square().sum(0)
    return total


def one_by_one(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: value[row : row + 1] for name, value in batch.items()} for row in range(3)]


def made(kind: str) -> tuple[Any, dict[str, Tensor]]:
    """A model, and three examples of different lengths."""
    torch.manual_seed(0)
    if kind in families.ENCODER_DECODER:
        return AutoModelForSeq2SeqLM.from_config(families.made(kind).config).eval(), seq2seq(kind)[0]
    batch = families.batch({"gpt2-lm": "gpt2", "bert-bare": "bert", "bert-spans": "bert"}.get(kind, kind))
    if kind == "gpt2-lm":
        del batch["labels"]
        return GPT2LMHeadModel(families.made("gpt2").config).eval(), batch
    if kind == "bert-spans":
        del batch["labels"]
        return AutoModelForQuestionAnswering.from_config(families.made("bert").config).eval(), batch
    if kind == "bert-bare":
        del batch["labels"]
        return AutoModel.from_config(families.made("bert").config).eval(), batch
    return families.made(kind, families.ATTENTION.get(kind, "sdpa")), batch


@pytest.mark.parametrize("kind", ["bert", "albert", "gpt2-lm", "bert-bare", "bert-spans", "deberta-v2", "t5"])
def test_it_is_the_squared_jacobian_on_average(kind):
    model, batch = made(kind)
    names = select(Anatomy(model), None)
    names = [names[0], names[len(names) // 2], names[-1]]
    draws = [sensitivities(model, [batch] * 40, names, seed) for seed in range(10)]
    for name in names:
        expected = sum(jacobians(model, name, each) for each in one_by_one(batch)) / 3
        found = torch.stack([draw[name] for draw in draws]).mean(0)
        assert float((found.sum() / expected.sum()).log().abs()) < 0.15, name
        torch.testing.assert_close(found, expected, rtol=0.5, atol=0.1 * float(expected.mean()))


def test_the_model_is_as_before():
    model = families.made("bert").train()
    frozen = model.get_parameter("bert.encoder.layer.0.attention.self.query.weight").requires_grad_(False)
    names = select(Anatomy(model), None)
    first, second = (sensitivities(model, [families.batch("bert")], names) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in names)
    assert not frozen.requires_grad
    assert model.training
    assert all(each.grad is None for each in model.parameters())
    assert hooks(model) == {}


def test_padding_says_nothing():
    """The same texts with more padding."""
    model, batch = made("bert-bare")
    wide = {name: nn.functional.pad(value, (0, 5)) for name, value in batch.items()}
    names = select(Anatomy(model), None)
    for seed in range(2):
        plain, padded = [
            sensitivities(model, one_by_one(each) * 30, names, seed)[names[0]] for each in (batch, wide)
        ]
        assert float((plain.sum() / padded.sum()).log().abs()) < 0.2


def test_what_cannot_move_is_refused():
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"loss": self.inner(inputs).sum()}

    model = Deaf()
    with pytest.raises(CookError, match="neither logits nor hidden states"):
        sensitivities(model, [{"inputs": torch.ones(1, 2)}], ["inner"])
    assert hooks(model) == {}


def test_classes_are_no_tokens_however_many():
    config = families.made("bert").config
    config.num_labels = 6
    model = AutoModelForSequenceClassification.from_config(config).eval()
    mask = (torch.arange(6) < 3).long().expand(2, 6)
    found = sensitivities(
        model, [{"input_ids": torch.full((2, 6), 7), "attention_mask": mask}], ["classifier"]
    )
    assert bool((found["classifier"] > 0).all())


def test_what_a_bare_model_pools_counts():
    model, batch = made("bert-bare")
    assert float(sensitivities(model, [batch], ["pooler.dense"])["pooler.dense"].sum()) > 0


def test_positions_may_be_told_once():
    model = GPT2LMHeadModel(families.made("gpt2").config).eval()
    batch = {"input_ids": torch.full((20, 30), 7), "position_ids": torch.arange(30)[None]}
    assert sensitivities(model, [batch], ["transformer.h.1.mlp.c_proj"])
