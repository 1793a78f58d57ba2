"""Fisher information of rows against one example at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from cook.lowrank.fisher import row_information, row_squares
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.targets import select
from cook.model.nn.linear import is_linear, matrix
from tests.helpers import families, tiny
from tests.helpers.traces import hooks


def test_squares_are_those_of_each_examples_gradient():
    generator = torch.Generator().manual_seed(0)
    inputs, slopes = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 5, 6, generator=generator)
    found = row_squares(inputs, slopes)
    for example in range(3):
        for row in range(6):
            gradient = sum(slopes[example, token, row] * inputs[example, token] for token in range(5))
            assert float(found[example, row]) == pytest.approx(float(gradient.square().sum()), rel=1e-5)


def one_at_a_time(model, batch, names):
    total = dict.fromkeys(names, 0.0)
    for row in range(len(batch["labels"])):
        single = {name: value[row : row + 1] for name, value in batch.items()}
        model.zero_grad()
        model(**single).loss.backward()
        for name in names:
            module = model.get_submodule(name)
            gradient = module.weight.grad.t() if matrix(module) is not module.weight else module.weight.grad
            total[name] = total[name] + gradient.double().square().sum(1)
    return {name: value / len(batch["labels"]) for name, value in total.items()}


@pytest.mark.parametrize("family", families.ALL)
def test_information_is_that_of_one_example_at_a_time(family):
    """ALBERT runs its layer twice, and its gradients are sums over both."""
    # T5's products are not scaled: torch's fused backward has an error of a thousandth there.
    attention = {**families.ATTENTION, "t5": "eager"}.get(family, "sdpa")
    model = families.made(family, attention)
    batch = families.batch(family)
    names = select(Anatomy(model), None)
    names += [name for name, each in model.named_modules() if is_linear(each) and name not in names][-1:]
    found = row_information(model, [batch], names)
    expected = one_at_a_time(model, batch, names)
    for name in names:
        largest = float(expected[name].max())
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-4, atol=1e-5 * largest)
    assert hooks(model) == {}


def test_each_example_counts_alike_whatever_its_length():
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny.model("llama").config).eval()
    batch = tiny.batch("llama", size=3)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    names = select(Anatomy(model), None)
    found, expected = row_information(model, [batch], names), one_at_a_time(model, batch, names)
    for name in names:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-4, atol=1e-9)


def test_frozen_weights_have_information_and_stay_frozen():
    model, batch = tiny.model(), tiny.batch()
    names = select(Anatomy(model), None)
    expected = row_information(model, [batch], names)
    model.requires_grad_(False)
    model.get_submodule("bert.embeddings").requires_grad_(True)
    found = row_information(model, [batch], names)
    assert all(torch.allclose(found[name], expected[name]) for name in names)
    assert not any(model.get_parameter(f"{name}.weight").requires_grad for name in names)
    assert all(each.grad is None for each in model.parameters())
