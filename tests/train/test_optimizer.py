"""AdamW's groups, and the schedules against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cook.train.optimizer import adamw, decay_groups, scheduler, share_of_rate
from tests.helpers import tiny


def rates(total: int, warmup: int, schedule: str) -> list[float]:
    """The learning rate of each step, as an optimizer sees it, where the recipe's is 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rate = scheduler(optimizer, total=total, warmup=warmup, schedule=schedule)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rate.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "form"),
    [
        ("linear", lambda t: 1 - t),
        ("cosine", lambda t: math.cos(math.pi * t / 2) ** 2),
        ("constant", lambda t: 1.0),
    ],
)
@pytest.mark.parametrize("warmup", [0, 3])
def test_schedules_have_their_closed_forms(schedule, form, warmup):
    total = 11
    found = rates(total, warmup, schedule)
    rising = [(step + 1) / (warmup + 1) for step in range(warmup)]
    falling = [form(step / (total - warmup)) for step in range(total - warmup)]
    assert found == pytest.approx(rising + falling, abs=1e-12)
    assert found[0] > 0, "no step is made in vain"


def test_a_run_that_is_all_warm_up_ends_at_its_rate():
    assert rates(4, 4, "linear") == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert share_of_rate(10, 10, 0, "linear") == 0
    assert share_of_rate(11, 10, 0, "cosine") == pytest.approx(0)
    with pytest.raises(ValueError, match="there are linear, cosine and constant"):
        share_of_rate(0, 1, 0, "step")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_matrices_decay_and_vectors_do_not(family):
    model = tiny.model(family)
    first = next(model.parameters())
    first.requires_grad_(False)
    decayed, kept = decay_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {parameter.dim() for parameter in kept["params"]} == {1}
    assert min(parameter.dim() for parameter in decayed["params"]) == 2
    found = [*decayed["params"], *kept["params"]]
    assert {id(each) for each in found} == {id(each) for each in model.parameters()} - {id(first)}
    assert len(found) == len({id(each) for each in found}), "a tied parameter stands once"


def test_decay_is_decoupled_and_leaves_vectors_alone():
    model = nn.Linear(3, 2)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, torch.tensor(1 - 0.1 * 0.5))
    assert torch.equal(model.bias, torch.ones(2))


def test_a_module_of_vectors_alone_has_one_group():
    (group,) = decay_groups(nn.LayerNorm(4), 0.1)
    assert group["weight_decay"] == 0.0
