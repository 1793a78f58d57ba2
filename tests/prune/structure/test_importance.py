"""Importances against references that run one example at a time and know no gates."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from cook.model.arch import units
from cook.model.arch.anatomy import Anatomy
from cook.prune.structure.importance import (
    gradient_importance,
    magnitude_importance,
    normalized,
    random_importance,
)
from tests.helpers import families
from tests.helpers.traces import hooks


def watch(given: list[Tensor], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    inputs[0].retain_grad()
    given.append(inputs[0])


def brute_force(model: nn.Module, found: list[units.UnitGroup], batch: dict[str, Tensor]) -> list[Tensor]:
    """`E_x |sum of what a unit gives times the loss's derivative by it|`, example by example.

    That sum is the derivative by a factor on all that the unit gives (Michel et al. 2019, equation 3).
    """
    model = copy.deepcopy(model).eval()
    totals = [torch.zeros(each.count, dtype=torch.float64) for each in found]
    for row in range(len(batch["labels"])):
        given: dict[str, list[Tensor]] = {}

        handles = [
            model.get_submodule(part.module).register_forward_pre_hook(
                partial(watch, given.setdefault(part.module, []))
            )
            for each in found
            for part in each.outputs
        ]
        model.zero_grad()
        model(**{name: value[row : row + 1] for name, value in batch.items()}).loss.backward()
        for handle in handles:
            handle.remove()
        for each, total in zip(found, totals, strict=True):
            slope = torch.zeros(each.count, dtype=torch.float64)
            for part in each.outputs:
                for tensor in given[part.module]:
                    products = (tensor * tensor.grad).double().reshape(-1, each.count, part.spans[0][1])
                    for unit in range(each.count):
                        slope[unit] += products[:, unit].sum()
            total += slope.abs()
    return [total / len(batch["labels"]) for total in totals]


def found_in(model: nn.Module) -> list[units.UnitGroup]:
    return units.heads(Anatomy(model)) + units.neurons(Anatomy(model))


@pytest.mark.parametrize("family", families.ALL)
def test_gradients_are_those_of_one_example_at_a_time(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa")).train()
    found, batch = found_in(model), families.batch(family)
    some = {name: value[:2] for name, value in batch.items()}
    other = {name: value[2:] for name, value in batch.items()}
    scores = gradient_importance(model, [some, other], found)
    wanted = brute_force(model, found, batch)
    for each, reference in zip(scores, wanted, strict=True):
        torch.testing.assert_close(each.double(), reference, rtol=1e-4, atol=1e-5)
        assert each.max() > 0
    assert model.training
    assert hooks(model) == {}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_example_of_many_tokens_counts_as_one():
    """A language model's loss is a mean over the tokens of the batch; importance, over its examples."""
    config = AutoConfig.for_model("llama", **{**families.SETTINGS["llama"], "initializer_range": 0.3})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    batch = families.batch("llama")
    labels = batch["input_ids"].where(batch["attention_mask"].bool(), -100)
    batch["labels"] = labels
    found = found_in(model)
    scores = gradient_importance(model, [batch], found)
    for each, reference in zip(scores, brute_force(model, found, batch), strict=True):
        torch.testing.assert_close(each.double(), reference, rtol=1e-4, atol=1e-5)


def test_absolute_values_are_taken_of_each_example():
    """After a sum over the batch the ranking is another one."""
    model = families.made("bert")
    found, batch = units.heads(Anatomy(model)), families.batch("bert")
    scores = torch.cat(gradient_importance(model, [batch], found))
    gates = [torch.ones(each.count, requires_grad=True) for each in found]
    handles = [
        model.get_submodule(each.outputs[0].module).register_forward_pre_hook(
            lambda _, inputs, gate=gate: ((inputs[0].unflatten(-1, (4, 4)) * gate[:, None]).flatten(-2),)
        )
        for each, gate in zip(found, gates, strict=True)
    ]
    summed = torch.cat([each.abs() for each in torch.autograd.grad(model(**batch).loss, gates)])
    for handle in handles:
        handle.remove()
    assert (scores >= summed - 1e-6).all()
    assert scores.argsort().tolist() != summed.argsort().tolist()


@pytest.mark.parametrize("family", families.ALL)
def test_magnitudes_are_those_of_all_that_a_unit_owns(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    model.requires_grad_(False)
    for each, scores in zip(found_in(model), magnitude_importance(model, found_in(model)), strict=True):
        for unit in range(0, each.count, 7):
            alone = torch.arange(each.count) != unit
            own = [model.get_parameter(name)[~keep] for name, keep in units.masks(model, each, alone)]
            own = torch.cat([number.flatten() for number in own]).double()
            assert float(scores[unit]) == pytest.approx(float(own.square().mean().sqrt()), rel=1e-5)


def test_chance_is_seeded():
    found = found_in(families.made("bert"))
    one, same, other = (random_importance(found, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_layers_are_compared_at_one_length():
    found = normalized([torch.tensor([3.0, 4.0]), torch.tensor([30.0, 40.0]), torch.zeros(2)])
    assert found[0].tolist() == pytest.approx([0.6, 0.8])
    assert torch.allclose(found[0], found[1])
    assert found[2].tolist() == [0.0, 0.0]
