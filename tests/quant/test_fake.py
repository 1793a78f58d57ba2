"""Fake quantisation against loops over Python's numbers, in values and gradients."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from cook.model.nn.integer import IntLinear
from cook.model.nn.transformed import TransformedLinear
from cook.quant.fake import FakeQuantMoving, FakeQuantToken, FakeQuantWeight, RoundClipped, update_together

WIDTHS = range(2, 9)


def single(value: float) -> float:
    """Rounded to float32, as every step of the arithmetic is."""
    return float(np.float32(value))


def slow_round(values: list[float], bits: int, scale: float | None = None) -> list[float]:
    """One row: nearest multiples (ties to even) of its scale, in the narrow range."""
    edge = 2 ** (bits - 1) - 1
    if scale is None:
        scale = single(max((abs(value) for value in values), default=0.0) / edge) or 1.0
    return [single(max(-edge, min(edge, round(single(value / scale)))) * scale) for value in values]


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    return values.masked_fill(torch.rand(rows, 1, generator=generator) < 0.2, 0.0)


CASES = {
    "bits": st.sampled_from(WIDTHS),
    "rows": st.integers(1, 4),
    "columns": st.integers(1, 9),
    "seed": st.integers(0, 2**31),
}


@pytest.mark.parametrize("kind", [FakeQuantWeight, FakeQuantToken])
@settings(max_examples=80, deadline=None)
@given(**CASES)
def test_a_scale_a_row(kind, bits, rows, columns, seed):
    transform = kind(bits)
    values = matrix(rows, columns, seed).requires_grad_()
    assert transform(values) is values, "not enabled"
    transform.enabled = True
    found = transform(values)
    assert found.tolist() == [slow_round(row, bits) for row in values.tolist()]
    upward = torch.randn(rows, columns)
    found.backward(upward)
    assert torch.equal(values.grad, upward), "nothing is outside of the range"


@settings(max_examples=80, deadline=None)
@given(scale=st.floats(0.01, 3), **CASES)
def test_one_scale_clips(scale, bits, rows, columns, seed):
    scale = single(scale)
    values = matrix(rows, columns, seed).requires_grad_()
    found = RoundClipped.apply(values, bits, torch.tensor(scale))
    assert found.tolist() == [slow_round(row, bits, scale) for row in values.tolist()]
    upward = torch.randn(rows, columns)
    found.backward(upward)
    edge = single(scale * (2 ** (bits - 1) - 1))
    expected = [
        [up if abs(value) <= edge else 0.0 for value, up in zip(*pair, strict=True)]
        for pair in zip(values.tolist(), upward.tolist(), strict=True)
    ]
    assert values.grad.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_rounding_is_near_odd_and_done_once(bits, rows, columns, seed):
    transform = FakeQuantWeight(bits)
    transform.enabled = True
    values = matrix(rows, columns, seed)
    found = transform(values)
    step = values.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found - values).abs() <= step / 2 * (1 + 1e-5)).all()
    assert torch.equal(transform(-values), -found)
    assert (found[values == 0] == 0).all()
    torch.testing.assert_close(transform(found), found, rtol=1e-5, atol=0)


def test_shapes_and_types_pass_through():
    transform = FakeQuantToken(8)
    transform.enabled = True
    values = torch.randn(2, 3, 4)
    found = transform(values)
    assert found[1, 2].tolist() == slow_round(values[1, 2].tolist(), 8)
    assert transform(values.bfloat16()).dtype == torch.bfloat16


def test_the_moving_average():
    decay, moving = 0.75, FakeQuantMoving(8, decay=0.75)
    assert moving(batch := torch.randn(3, 4)) is batch
    moving.enabled = True
    moving.eval()
    assert moving(batch) is batch, "nothing was observed"
    moving.train()
    average = None
    for seed in range(5):
        inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        now = max(abs(value) for row in inputs.tolist() for value in row)
        halves = [moving(half) for half in inputs.split([1, 2])]
        if average is not None:
            assert moving.largest.item() == pytest.approx(average, rel=1e-6), "it moves once an update"
            found = torch.cat(halves)
            scale = moving.scale.item()
            bound = scale * 127
            clipped = [[max(-bound, min(bound, value)) for value in row] for row in inputs.tolist()]
            assert found.tolist() == [slow_round(row, 8, scale) for row in clipped]
        average = now if average is None else decay * average + (1 - decay) * now
        moving.update()
        assert moving.largest.item() == pytest.approx(average, rel=1e-6)
    large = 100 * torch.randn(3, 4)
    for freeze in (lambda: moving.eval(), lambda: setattr(moving.train(), "frozen", True)):
        freeze()
        found = moving(large)
        moving.update()
        assert moving.largest.item() == pytest.approx(average, rel=1e-6)
        assert found.abs().max().item() <= average * 1.001


def test_zeros_are_no_observation_to_start_from():
    moving = FakeQuantMoving(4, decay=0.5)
    moving.enabled = True
    zeros = torch.zeros(2, 3)
    assert torch.equal(moving(zeros), zeros), "0 / 0 would be NaN"
    moving.update()
    assert torch.equal(moving(zeros), zeros), "0 / 0 would be NaN"
    assert moving.scale == 1
    moving(torch.tensor([[2.0, -6.0]]))
    moving.update()
    assert moving.largest == 6
    moving(zeros)
    moving.update()
    assert moving.largest == 3


@pytest.mark.parametrize("again", [True, False])
def test_a_forward_that_is_computed_again_is_not_observed_again(again):
    moving = FakeQuantMoving(4, decay=0.5)
    moving.enabled = True
    moving(torch.full((1, 3), 4.0))
    moving.update()
    inputs = torch.tensor([[1.0, -1.0, 8.0]], requires_grad=True)
    found = checkpoint(moving, inputs, use_reentrant=False) if again else moving(inputs)
    moving.pending.zero_()  # what is computed again must not be collected again
    found.square().sum().backward()
    assert moving.pending == 0
    moving.observe(inputs)
    moving.update()
    assert moving.largest == 6
    step = 4 / 7
    expected = [[2 * round(1 / step) * step, 2 * round(-1 / step) * step, 0.0]]
    torch.testing.assert_close(inputs.grad, torch.tensor(expected))


def test_state_and_copies_remember_what_was_observed():
    moving, fresh = FakeQuantMoving(8), FakeQuantMoving(8)
    moving.enabled = fresh.enabled = True
    moving(torch.randn(3, 4))
    moving.update()
    fresh.load_state_dict(moving.state_dict())
    assert fresh.observed
    inputs = torch.randn(3, 4)
    assert torch.equal(fresh(inputs), moving(inputs))
    for each in (fresh, moving):
        each.update()
    assert torch.equal(fresh.largest, moving.largest)
    assert torch.equal(copy.deepcopy(moving).eval()(inputs), moving.eval()(inputs))
    empty = FakeQuantMoving(8)
    fresh.load_state_dict(empty.state_dict())
    assert not fresh.observed


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("observer", ["token", "moving", None])
def test_the_integer_layer_gives_the_same(bits, observer):
    torch.manual_seed(bits)
    stand = TransformedLinear(nn.Linear(7, 5))
    weight = FakeQuantWeight(bits)
    weight.enabled = True
    stand.add_weight_transform("q", weight)
    options, scale = None, None
    if observer:
        inputs = FakeQuantToken(bits) if observer == "token" else FakeQuantMoving(bits)
        inputs.enabled = True
        stand.add_input_transform("q", inputs)
        stand(torch.randn(6, 7))
        if observer == "moving":
            inputs.update()
        options = {"bits": bits, "kind": "token" if observer == "token" else "static"}
        scale = getattr(inputs, "scale", None)
    stand.eval()
    given = 2 * torch.randn(4, 7)
    assert torch.equal(IntLinear.from_linear(stand, bits, options, input_scale=scale)(given), stand(given))


def test_an_update_takes_the_largest_of_all_processes_and_skips_what_none_has_run():
    seen, unseen, frozen = (FakeQuantMoving(8, decay=0.5) for _ in range(3))
    for each in (seen, unseen, frozen):
        each.enabled = True
    frozen.frozen = True
    seen(torch.tensor([[3.0]]))
    others = torch.tensor([8.0, -1.0, -1.0])
    update_together([seen, unseen, frozen], lambda own: torch.maximum(own, others))
    assert (seen.largest, seen.observed, seen.pending) == (8, True, None)
    assert (unseen.observed, frozen.observed) == (False, False)
    update_together([seen, unseen, frozen], lambda own: own)
    assert seen.largest == 8
