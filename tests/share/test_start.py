"""What a group starts from, against sums written out, and residuals that hold what they can."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cook.share.start import distance, factors, nearest, started


def layers(count: int, seed: int, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    return [
        {
            "weight": torch.randn(3, 4, generator=source).to(dtype),
            "bias": torch.randn(3, generator=source).to(dtype),
        }
        for _ in range(count)
    ]


def test_the_mean_is_the_sum_by_the_number():
    several = layers(3, 0)
    found = started(several, "mean")
    for name in ("weight", "bias"):
        for index in range(several[0][name].numel()):
            values = [each[name].flatten()[index].item() for each in several]
            assert found[name].flatten()[index].item() == pytest.approx(sum(values) / 3, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 7), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_equal_layers_start_from_themselves(count, seed, dtype):
    (layer,) = layers(1, seed, dtype)
    for init in ("mean", "first", "best"):
        found = started([{name: each.clone() for name, each in layer.items()} for _ in range(count)], init)
        assert all(torch.equal(found[name], layer[name]) for name in layer)
        assert {each.dtype for each in found.values()} == {dtype}
    assert distance(layer, layer) == 0


def test_first_and_best_are_one_of_the_layers():
    several = layers(3, 1)
    several[2] = {name: (several[0][name] + several[1][name]) / 2 for name in several[0]}
    assert started(several, "first")["weight"] is several[0]["weight"]
    assert nearest(several) == 2
    assert started(several, "best")["weight"] is several[2]["weight"]
    with pytest.raises(ValueError, match="mean, first, best"):
        started(several, "last")


def test_the_nearest_layer_has_the_least_sum_of_squared_distances():
    several = layers(4, 2)
    sums = []
    for one in several:
        total = 0.0
        for other in several:
            numbers = [
                (a, b)
                for name in one
                for a, b in zip(other[name].flatten().tolist(), one[name].flatten().tolist(), strict=True)
            ]
            total += sum((a - b) ** 2 for a, b in numbers) / sum(a**2 for a, _ in numbers)
        sums.append(total)
    assert nearest(several) == sums.index(min(sums))


def test_a_distance_is_relative_to_the_layer():
    layer, start = {"weight": torch.tensor([3.0, 4.0])}, {"weight": torch.tensor([3.0, 1.0])}
    assert distance(layer, start) == pytest.approx(3 / 5)
    assert distance({"weight": torch.zeros(2)}, start) == math.inf
    assert distance({"weight": torch.zeros(2)}, {"weight": torch.zeros(2)}) == 0


@settings(max_examples=50, deadline=None)
@given(out=st.integers(1, 6), columns=st.integers(1, 6), rank=st.integers(1, 6), seed=st.integers(0, 99))
def test_factors_are_the_nearest_matrix_of_their_rank(out, columns, rank, seed):
    rank = min(rank, out, columns)
    matrix = torch.randn(out, columns, generator=torch.Generator().manual_seed(seed))
    up, down = factors(matrix, rank)
    assert (up.shape, down.shape) == ((out, rank), (rank, columns))
    # Eckart and Young: what is lost are the singular values beyond the rank.
    lost = torch.linalg.svdvals(matrix.double())[rank:].square().sum().sqrt()
    assert float((matrix - up @ down).norm()) == pytest.approx(float(lost), abs=1e-5)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), rtol=1e-4, atol=1e-5)


def test_a_residual_of_nothing_can_learn():
    up, down = factors(torch.zeros(4, 5), 2)
    assert not up.any()
    torch.testing.assert_close(down.norm(dim=1), torch.ones(2))
