"""The factors of a table against numpy's singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.lowrank.table import CHUNK, factors


def drawn(rows: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows whose directions differ in length, as those of embeddings do."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(3, 0.1, width)
    return (torch.randn(rows, width, generator=generator) * lengths).to(dtype)


def tail(table: torch.Tensor, rank: int) -> float:
    """What the singular values behind the first ones leave of a table's length."""
    values = np.linalg.svd(table.double().numpy(), compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum() / (values**2).sum()))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), width=st.integers(1, 12), seed=st.integers(0, 9), data=st.data())
def test_the_error_is_the_tail_of_the_singular_values(rows, width, seed, data):
    rank = data.draw(st.integers(1, width))
    table = drawn(rows, width, seed, torch.float64)
    found = factors(table, rank)
    assert (found.table.shape, found.factor.shape) == ((rows, rank), (rank, width))
    expected = tail(table, rank)
    assert float((found.table @ found.factor - table).norm() / table.norm()) == pytest.approx(
        expected, abs=1e-7
    )
    assert found.error == pytest.approx(expected, abs=1e-7)


def test_the_factors_are_those_of_numpy_and_share_the_lengths():
    table = drawn(30, 8, dtype=torch.float64)
    left, values, right = np.linalg.svd(table.numpy(), full_matrices=False)
    found = factors(table, 3)
    for number in range(3):
        sign = np.sign(found.factor[number].numpy() @ right[number])
        root = np.sqrt(values[number])
        np.testing.assert_allclose(found.table[:, number].numpy() * sign, left[:, number] * root, atol=1e-9)
        np.testing.assert_allclose(found.factor[number].numpy() * sign, right[number] * root, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_rank_gives_the_table_back(dtype):
    table = drawn(50, 6, dtype=dtype)
    found = factors(table, 6)
    assert found.table.dtype == found.factor.dtype == dtype
    close = 1e-5 if dtype is torch.float32 else 0.1
    assert torch.allclose(found.table.double() @ found.factor.double(), table.double(), atol=close)
    assert found.error < 1e-6


def test_more_rows_than_are_taken_at_once():
    table = drawn(CHUNK + 5, 4, dtype=torch.float64)
    found = factors(table, 2)
    assert found.error == pytest.approx(tail(table, 2), abs=1e-7)
    assert torch.allclose(found.table, factors(table[torch.arange(CHUNK + 5)], 2).table)


def test_rows_that_count_more_are_nearer():
    table, counts = drawn(30, 6, dtype=torch.float64), torch.randint(0, 50, (30,))
    found = factors(table, 2, counts)

    def error(product: torch.Tensor) -> float:
        return float((counts.unsqueeze(1) * (product - table).square()).sum())

    # The SVD of rows scaled by the roots of their counts is the best product for the weighted error.
    roots = np.sqrt(counts.numpy())[:, None]
    values = np.linalg.svd(table.numpy() * roots, compute_uv=False)
    assert error(found.table @ found.factor) == pytest.approx((values[2:] ** 2).sum())
    plain = factors(table, 2)
    assert error(plain.table @ plain.factor) > error(found.table @ found.factor)
    assert found.error > plain.error
    assert found.error == pytest.approx(float((found.table @ found.factor - table).norm() / table.norm()))


def test_equal_counts_change_nothing():
    table = drawn(20, 5, dtype=torch.float64)
    found, plain = factors(table, 2, torch.full((20,), 7)), factors(table, 2)
    assert torch.allclose(found.table @ found.factor, plain.table @ plain.factor)


def test_empty_directions_and_empty_rows_stay_empty():
    table = torch.zeros(9, 4)
    table[1:, 0] = torch.arange(8) + 1.0
    found = factors(table, 3)
    assert bool(found.table.isfinite().all())
    assert torch.equal(found.table[0], torch.zeros(3))
    assert torch.allclose(found.table @ found.factor, table, atol=1e-6)
    nothing = factors(torch.zeros(5, 4), 2)
    assert (nothing.error, float((nothing.table @ nothing.factor).abs().max())) == (0.0, 0.0)
