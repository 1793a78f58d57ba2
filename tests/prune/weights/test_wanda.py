"""Wanda against loops over rows and columns, and exact counts in every row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.prune.weights.wanda import row_masks, wanda_scores


def slow_scores(weight: list[list[float]], inputs: list[list[float]]) -> list[list[float]]:
    """Equation 1: each weight's size times the length of its input over all tokens."""
    norms = [sum(token[column] ** 2 for token in inputs) ** 0.5 for column in range(len(weight[0]))]
    return [[abs(value) * norm for value, norm in zip(row, norms, strict=True)] for row in weight]


def slow_rows(scores: list[list[float]], sparsity: float) -> list[list[bool]]:
    """Each row by itself: all but the first `round(sparsity * in)` of a stable sort."""
    kept = []
    for row in scores:
        order = sorted(range(len(row)), key=lambda column: (row[column], column))
        dropped = set(order[: round(sparsity * len(row))])
        kept.append([column not in dropped for column in range(len(row))])
    return kept


def test_scores_are_size_times_norm():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    inputs = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    found = wanda_scores(weight, inputs.square().sum(0))
    expected = torch.tensor(slow_scores(weight.tolist(), inputs.tolist()), dtype=torch.float64)
    assert found.dtype == torch.float32
    assert found.double().numpy() == pytest.approx(expected.numpy(), rel=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    out=st.integers(1, 5),
    width=st.integers(1, 9),
    sparsity=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    ties=st.booleans(),
)
def test_rows_against_a_sort_of_each(out, width, sparsity, seed, ties):
    scores = torch.randn(out, width, generator=torch.Generator().manual_seed(seed)).abs()
    scores = scores.round() if ties else scores
    keep = row_masks(scores, sparsity)
    assert keep.tolist() == slow_rows(scores.tolist(), sparsity)
    assert (~keep).sum(1).tolist() == [round(sparsity * width)] * out


def test_an_input_that_is_never_there_goes_first():
    weight = torch.tensor([[100.0, 1.0, 2.0, 3.0]])
    keep = row_masks(wanda_scores(weight, torch.tensor([0.0, 1.0, 1.0, 1.0])), 0.5)
    assert keep.tolist() == [[False, False, True, True]]
