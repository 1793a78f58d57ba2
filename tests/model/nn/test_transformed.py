"""The stand-in for a linear layer: values, gradients, order of transforms, and the way back."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cook.model.nn.integer import stored_width
from cook.model.nn.linear import matrix, shape
from cook.model.nn.transformed import SoftMask, TransformedLinear, restore, transform
from cook.quant.fake import FakeQuantToken, FakeQuantWeight


class Scaled(nn.Module):
    """Multiplies by a number; stands where the test says."""

    def __init__(self, factor: float, order: int = 0):
        super().__init__()
        self.factor, self.order = factor, order

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.factor * values


def layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "conv1d":
        return Conv1D(3, 5)
    return nn.Linear(5, 3, bias=kind == "linear")


KINDS = ("linear", "bare", "conv1d")


@pytest.mark.parametrize("kind", KINDS)
def test_without_transforms_it_is_the_layer_itself(kind):
    source = layer(kind)
    stand = TransformedLinear(source)
    inputs = torch.randn(2, 4, 5)
    torch.testing.assert_close(stand(inputs), source(inputs))
    assert stand.weight is source.weight
    assert dict(stand.named_parameters()).keys() == dict(source.named_parameters()).keys()
    assert shape(stand) == (3, 5)
    assert torch.equal(matrix(stand), matrix(source))
    assert stand.plain
    assert not stand.quantised
    assert stand.stored_bits is None
    assert stand.source() is source


@pytest.mark.parametrize("kind", KINDS)
def test_a_soft_mask_against_loops_in_values_and_gradients(kind):
    source = layer(kind).double()
    stand = TransformedLinear(source)
    mask = SoftMask(3, 5)
    stand.add_weight_transform("soft", mask)
    mask.keep.copy_(torch.rand(3, 5) > 0.5)
    inputs = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    upward = torch.randn(4, 3, dtype=torch.float64)
    output = stand(inputs)
    (output * upward).sum().backward()
    weight, given = matrix(source).detach(), inputs.detach()
    masked = [[float(weight[o, i]) if mask.keep[o, i] else 0.0 for i in range(5)] for o in range(3)]
    for row in range(4):
        for o in range(3):
            expected = sum(masked[o][i] * float(given[row, i]) for i in range(5))
            expected += float(source.bias.detach()[o]) if kind != "bare" else 0.0
            assert float(output.detach()[row, o]) == pytest.approx(expected)
    for o in range(3):
        for i in range(5):
            # The whole gradient of the dense layer, masked or not: what is masked may grow back.
            expected = sum(float(upward[row, o]) * float(given[row, i]) for row in range(4))
            got = source.weight.grad[i, o] if kind == "conv1d" else source.weight.grad[o, i]
            assert float(got) == pytest.approx(expected)
    for row in range(4):
        for i in range(5):
            expected = sum(float(upward[row, o]) * masked[o][i] for o in range(3))
            assert float(inputs.grad[row, i]) == pytest.approx(expected)


def test_masked_weights_learn_while_they_are_masked():
    stand = TransformedLinear(layer("linear"))
    mask = SoftMask(3, 5)
    stand.add_weight_transform("soft", mask)
    mask.keep[0] = False
    before = stand.weight.detach().clone()
    optimizer = torch.optim.AdamW(stand.parameters(), lr=0.1)
    stand(torch.randn(8, 5)).sum().backward()
    optimizer.step()
    assert (stand.weight[0] != before[0]).all()
    assert (stand.effective()[0] == 0).all()


@pytest.mark.parametrize("quantised_first", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_masked_weights_are_zero_after_fake_quantisation_in_any_order_of_attaching(bits, quantised_first):
    stand = TransformedLinear(layer("linear"))
    mask, rounding = SoftMask(3, 5), FakeQuantWeight(bits)
    rounding.enabled = True
    both = [("quant", rounding), ("soft", mask)]
    for name, each in both if quantised_first else reversed(both):
        stand.add_weight_transform(name, each)
    mask.keep.copy_(torch.rand(3, 5) > 0.5)
    # The scale comes from what is left, so the two do not commute.
    assert torch.equal(stand.effective(), rounding(mask(stand.weight)))
    assert (stand.effective()[~mask.keep] == 0).all()
    assert stand.stored_bits == stored_width(bits)


def test_transforms_follow_their_order_and_leave_by_name():
    stand = TransformedLinear(layer("linear"))
    stand.add_weight_transform("late.pass", FakeQuantWeight(4))
    stand.add_weight_transform("early.pass", Scaled(2, order=0))
    stand.add_input_transform("late.pass", Scaled(3))
    assert list(stand.weight_transforms) == ["early_pass", "late_pass"]
    inputs = torch.randn(2, 5)
    torch.testing.assert_close(stand(inputs), nn.functional.linear(3 * inputs, 2 * stand.weight, stand.bias))
    assert stand.quantised
    assert stand.stored_bits is None, "not enabled yet: it would be stored as a float"
    stand.weight_transform("late.pass").enabled = True
    assert stand.stored_bits == 4
    stand.remove("late.pass")
    assert list(stand.weight_transforms) == ["early_pass"]
    assert not stand.input_transforms
    stand.remove("late.pass")
    assert not stand.plain


@pytest.mark.parametrize("kind", KINDS)
def test_transform_and_restore_are_inverse(kind):
    model = nn.Sequential(layer(kind), nn.ReLU())
    before = model[0]
    keys = list(model.state_dict())
    stand = transform(model, "0")
    assert transform(model, "0") is stand
    stand.add_input_transform("a", FakeQuantToken(8))
    restore(model, "0")
    assert model[0] is stand, "a transform is left"
    stand.remove("a")
    # Parameters may have been exchanged meanwhile, as casting a model can do.
    stand.weight = nn.Parameter(stand.weight.detach() + 1)
    restore(model, "0")
    assert model[0] is before
    assert model[0].weight is stand.weight
    assert list(model.state_dict()) == keys
    restore(model, "0")
    assert model[0] is before


def test_modes_devices_and_copies_follow_the_model():
    model = nn.Sequential(layer("linear")).eval()
    stand = transform(model, "0")
    stand.add_input_transform("a", FakeQuantToken(8))
    stand.add_weight_transform("a", FakeQuantWeight(8))
    assert not stand.training
    assert not stand.input_transform("a").training
    assert not stand.weight_transform("a").training
    twin = copy.deepcopy(model)
    assert twin[0].source().weight is twin[0].weight
    assert twin[0].weight is not model[0].weight
    model.train()
    assert stand.source().training
    model.double()
    assert stand.source().weight.dtype == torch.float64


def test_only_linear_layers_can_be_stood_in_for():
    with pytest.raises(TypeError, match="ReLU is not a linear layer"):
        TransformedLinear(nn.ReLU())
