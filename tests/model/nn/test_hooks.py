"""Hooks that are counted, silenced, and all removed."""

import pytest
import torch
from torch import nn

from cook.model.nn.hooks import Hooks


def counted(model: nn.Module) -> int:
    """The hooks that torch holds for a model, whoever registered them."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def test_hooks_fire_and_may_change_what_passes(model):
    hooks, seen = Hooks(), []
    hooks.forward_pre(model[1], lambda module, inputs: (inputs[0] * 0 - 1,))
    hooks.forward(model[1], lambda module, inputs, output: seen.append((inputs[0], output)))
    hooks.forward(model, lambda module, inputs, output: output + 5)
    assert torch.equal(model(torch.randn(1, 2)), torch.full((1, 2), 5.0))
    assert torch.equal(seen[0][0], torch.full((1, 2), -1.0))
    assert torch.equal(seen[0][1], torch.zeros(1, 2))
    assert len(hooks) == counted(model) == 3


def test_silence_nests_and_survives_exceptions(model):
    hooks, seen = Hooks(), []
    hooks.forward(model, lambda *_: seen.append("after"))
    hooks.forward_pre(model, lambda *_: seen.append("before"))
    inputs = torch.randn(1, 2)
    with hooks.silenced():
        with hooks.silenced():
            model(inputs)
        model(inputs)
        assert seen == []
    model(inputs)
    assert seen == ["before", "after"]

    def broken() -> None:
        with hooks.silenced():
            raise KeyError("inside")

    with pytest.raises(KeyError):
        broken()
    model(inputs)
    assert len(seen) == 4


def test_after_step_follows_real_steps_only_and_is_never_silenced(model):
    hooks, steps = Hooks(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hooks.after_step(optimizer, lambda: steps.append(1))
    with hooks.silenced():
        optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(model(torch.full((1, 2), float("inf"))).sum()).backward()
    scaler.step(optimizer)  # infinite gradients: skipped
    assert len(steps) == 1
    hooks.close()
    optimizer.step()
    assert len(steps) == 1


def test_close_removes_all_and_only_its_own(model):
    hooks, other = Hooks(), Hooks()
    hooks.forward(model, lambda *_: None)
    hooks.forward_pre(model[0], lambda *_: None)
    other.forward(model[0], lambda *_: None)
    hooks.close()
    hooks.close()
    assert len(hooks) == 0
    assert counted(model) == len(other) == 1
