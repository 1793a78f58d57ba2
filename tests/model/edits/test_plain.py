"""What a config can say needs no Blueprint."""

from __future__ import annotations

import pytest
import torch

from cook.model.arch import units
from cook.model.arch.anatomy import Anatomy
from cook.model.edits import plain, removal
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.nn import surgery
from tests.helpers import families
from tests.model.arch.test_units import logits

SAID = {"gemma", "llama", "mistral", "phi3", "qwen2", "qwen3", "t5", "vit"}
"""The families whose config tells the width of a head apart from the model's and the number of heads."""


def cut(family: str, found: str, stay: int) -> tuple[torch.nn.Module, Blueprint]:
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    blueprint = Blueprint()
    for each in getattr(units, found)(Anatomy(model)):
        keep = torch.arange(each.count) >= each.count - stay
        for edit in removal.remove(model, each, keep)[0]:
            blueprint.append(edit)
    return model, blueprint


@pytest.mark.parametrize("family", families.ALL)
def test_equal_widths_are_said_by_the_config(family):
    model, blueprint = cut(family, "neurons", 8)
    before = logits(model, family)
    assert plain.settle(model, blueprint).edits == []
    rebuilt = type(model)(model.config).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(logits(rebuilt, family), before)


@pytest.mark.parametrize("family", families.ALL)
def test_equal_heads_are_said_by_the_config_that_can(family):
    model, blueprint = cut(family, "heads", 1)
    before, config = logits(model, family), model.config.to_dict()
    left = plain.settle(model, blueprint).edits
    if family in SAID:
        assert left == []
        assert not any(isinstance(vars(m).get("config"), surgery.Changed) for m in model.modules())
        rebuilt = type(model)(model.config).eval()
        rebuilt.load_state_dict(model.state_dict())
        assert torch.equal(logits(rebuilt, family), before)
    else:
        assert left == blueprint.edits
        assert model.config.to_dict() == config


def test_unequal_ones_are_not():
    model, blueprint = cut("bert", "neurons", 8)
    surgery.resize(model.bert.encoder.layer[0].intermediate.dense, 5, 16)
    surgery.resize(model.bert.encoder.layer[0].output.dense, 16, 5)
    assert plain.settle(model, blueprint).edits == blueprint.edits
    assert model.config.intermediate_size == 32


def test_integers_stay_in_the_blueprint():
    model, blueprint = cut("bert", "neurons", 8)
    options = {"bits": 8, "activation": None, "in": 16, "out": 16, "bias": True}
    integer = Edit("integer", "bert.encoder.layer.0.attention.self.query", options)
    blueprint.append(integer)
    Blueprint(edits=[integer]).apply(model)
    assert plain.settle(model, blueprint).edits == [integer]
    assert model.config.intermediate_size == 8


def test_the_sizes_are_those_in_the_end():
    model, blueprint = cut("bert", "neurons", 8)
    up = "bert.encoder.layer.0.intermediate.dense"
    blueprint.append(Edit("resize", up, {"in": 16, "out": 8}))
    surgery.select(surgery.get(model, up), in_=torch.arange(12))
    found = [edit for edit in plain.current(model, blueprint).edits if edit.module == up]
    assert found == [Edit("resize", up, {"out": 8, "in": 12})]
    assert len(plain.current(model, blueprint).edits) == len(blueprint.edits) - 1
