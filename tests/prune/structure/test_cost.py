"""What a cost says of a pruned model is what the pruned model costs."""

import copy

import pytest
import torch

from cook.model.arch.anatomy import Anatomy
from cook.model.arch.units import heads, neurons
from cook.model.edits.removal import remove
from cook.model.probe.measure import macs
from cook.prune.structure import cost
from tests.helpers import families


def _units(anatomy):
    return [*heads(anatomy), *neurons(anatomy)]


def _pruned(model, left):
    pruned = copy.deepcopy(model)
    for each, count in zip(_units(Anatomy(model)), left, strict=True):
        remove(pruned, each, torch.arange(each.count) < count)
    return pruned


def _some(units):
    return [max(1, each.count - 1 - number % 2) for number, each in enumerate(units)]


@pytest.mark.parametrize("family", families.ALL)
def test_parameters_and_macs_of_a_pruned_model_are_foretold(family):
    model, batch = families.made(family, families.ATTENTION.get(family, "sdpa")), families.batch(family)
    units = _units(Anatomy(model))
    left = _some(units)
    pruned = _pruned(model, left)
    parameters = cost.parameters(model, units)
    assert parameters.whole == sum(each.numel() for each in model.parameters())
    assert parameters.of(left) == sum(each.numel() for each in pruned.parameters())
    foretold = cost.multiply_accumulates(model, units, batch)
    assert foretold.whole == pytest.approx(macs(model, batch), abs=0.5)
    assert foretold.of(left) == pytest.approx(macs(pruned, batch), abs=0.5)
