"""The mathematics of gates against loops, sums over all that may happen, and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from cook.prune.structure.cost import Cost
from cook.prune.structure.gates import BOUND, OPEN, Gates, hard_concrete, lagrangian, probabilities, uniform
from cook.prune.structure.shares import Expected, Shares


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def gate(loga: float, noise: float | None) -> float:
    """The formula, in Python numbers."""
    at = loga if noise is None else (math.log(noise / (1 - noise)) + loga) / (2 / 3)
    return min(1.0, max(0.0, 1.2 * sigmoid(at) - 0.1))


@pytest.mark.parametrize("drawn", [True, False])
def test_gates_against_the_formula_and_finite_differences(drawn):
    loga, noise = 3 * random(40), uniform(40, 7)
    loga.requires_grad_()
    found = hard_concrete(loga, noise if drawn else None)
    pairs = list(zip(loga.tolist(), noise.tolist() if drawn else [None] * 40, strict=True))
    assert found.tolist() == pytest.approx([gate(*pair) for pair in pairs], abs=1e-12)
    assert 0.0 in found.tolist()
    assert 1.0 in found.tolist()
    factors = random(40, seed=1)
    (found * factors).sum().backward()
    step = 1e-6
    slopes = [(gate(one + step, u) - gate(one - step, u)) / (2 * step) for one, u in pairs]
    assert loga.grad is not None
    assert loga.grad.tolist() == pytest.approx((torch.tensor(slopes).double() * factors).tolist(), abs=1e-6)


def test_probabilities_are_how_often_gates_are_not_zero():
    loga = torch.linspace(-4, 3, 8, dtype=torch.float64)
    noise = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    often = (hard_concrete(loga[:, None].expand(-1, 20_000), noise.expand(8, -1)) > 0).double().mean(1)
    torch.testing.assert_close(probabilities(loga), often, rtol=0, atol=1e-4)


def test_draws_depend_on_their_key_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, same = uniform(5, 1, 2, 3), uniform(5, 1, 2, 3)
    assert torch.equal(first, same)
    assert torch.equal(state, torch.get_rng_state())
    others = [uniform(5, *key) for key in ((0, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert not any(torch.equal(first, other) for other in others)


def _two_layers() -> tuple[Shares, list[torch.Tensor], torch.Tensor]:
    """Two attentions and an FFN; the second layer has no gate."""
    lines = [
        slope * torch.arange(count + 1, dtype=torch.float64) for slope, count in ((3, 2), (5, 3), (2, 4))
    ]
    cost = Cost("parameters", lines, {"first": 4.0, "second": 6.0}, 10.0)
    shares = Shares.made(cost, [0, None, 0], ["first"])
    units = [torch.sigmoid(random(count, seed=count)) for count in (2, 3, 4)]
    return shares, units, torch.sigmoid(random(1, seed=9))


def brute(shares: Shares, units: list[torch.Tensor], layers: torch.Tensor) -> torch.Tensor:
    """The mean cost over all that may be open, each weighted with its probability."""
    every = torch.cat([layers, *units])
    total = torch.zeros((), dtype=torch.float64)
    for states in itertools.product((0, 1), repeat=len(every)):
        chance = torch.ones((), dtype=torch.float64)
        for open_, probability in zip(states, every, strict=True):
            chance = chance * (probability if open_ else 1 - probability)
        cost = shares.rest
        if states[0]:
            cost += shares.layers[0]
        at = 1
        for curve, home, own in zip(shares.curves, shares.homes, units, strict=True):
            if home is None or states[0]:
                cost += float(curve[sum(states[at : at + len(own)])])
            at += len(own)
        total = total + chance * cost
    return total


def test_expected_cost_and_its_gradient_against_all_that_may_happen():
    shares, units, layers = _two_layers()
    every = [each.requires_grad_() for each in (*units, layers)]
    found = Expected(shares, layers)(layers, torch.stack([each.sum() for each in units]))
    wanted = brute(shares, units, layers)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=1e-12)
    slopes, references = torch.autograd.grad(found, every), torch.autograd.grad(wanted, every)
    for slope, reference in zip(slopes, references, strict=True):
        torch.testing.assert_close(slope, reference, rtol=0, atol=1e-12)


def test_shares_add_up_and_curves_are_straight_between_their_points():
    shares, units, _ = _two_layers()
    counts = [len(each) for each in units]
    assert shares.of([True], counts) == pytest.approx(1)
    assert shares.of([False], counts) == pytest.approx((10 + 6 + 15) / 49)
    assert shares.of([True], [1, 1, 1]) == pytest.approx((20 + 3 + 5 + 2) / 49)
    bent = Shares([torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)], [None], [], 0.5)
    none = torch.zeros(0, dtype=torch.float64)
    for count, left in ((0.0, 0.5), (0.5, 0.55), (1.25, 0.7), (2.0, 1.0)):
        counted = torch.tensor(count, dtype=torch.float64, requires_grad=True)
        found = Expected(bent, none)(none, counted[None])
        assert float(found.detach()) == pytest.approx(left)
        (slope,) = torch.autograd.grad(found, counted)
        assert float(slope) == pytest.approx(0.1 if count < 1 else 0.4)


def test_multipliers_ascend_what_gates_descend():
    over = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    multipliers = torch.tensor([2.0, 5.0], dtype=torch.float64, requires_grad=True)
    value = lagrangian(over, multipliers)
    value.backward()
    assert float(value.detach()) == pytest.approx(2 * -0.3 + 5 * 0.09)
    assert float(over.grad) == pytest.approx(2 + 2 * 5 * -0.3)
    assert multipliers.grad.tolist() == pytest.approx([0.3, -0.09])


def test_gates_learn_faster_than_the_rate_and_stay_where_they_can_come_back():
    gates = Gates([2, 3], dtype=torch.float64)
    gates.speed = 50.0
    assert gates.loga.tolist() == [OPEN] * 5
    optimizer = torch.optim.SGD(gates.parameters(), lr=0.01)
    (2 * gates.loga.sum() + 3 * gates.multipliers[0] - gates.multipliers[1]).backward()
    assert gates.moved.grad.tolist() == [2.0] * 5
    optimizer.step()
    assert gates.loga.tolist() == pytest.approx([OPEN - 50 * 0.01 * 2] * 5)
    assert gates.multipliers.tolist() == pytest.approx([-3 * 50 * 0.01 * 3, 60 * 50 * 0.01])
    assert [len(each) for each in gates.split(gates.loga)] == [2, 3]
    with torch.no_grad():
        gates.moved.copy_(torch.tensor([-9.0, -0.01, 0.0, 0.01, 9.0]))
    gates.bound()
    assert gates.loga.tolist() == pytest.approx([-BOUND, 2.5, 3.0, 3.5, BOUND])
