"""Sums over tokens: against loops, in several parts, of any float type."""

import pytest
import torch

from cook.model.calibration.statistics import Gram, SquaredNorms


def test_sums_against_loops_and_in_parts():
    inputs = torch.randn(11, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = inputs.tolist()
    products = [[sum(row[i] * row[j] for row in rows) for j in range(4)] for i in range(4)]
    gram, norms = Gram(4, dtype=torch.float64), SquaredNorms(4, dtype=torch.float64)
    for part in inputs.split(3):
        gram.add(part)
        norms.add(part)
    assert gram.value.tolist() == [pytest.approx(row) for row in products]
    assert norms.value.tolist() == pytest.approx([products[i][i] for i in range(4)])
    assert gram.tokens == norms.tokens == 11


@pytest.mark.parametrize("kind", [Gram, SquaredNorms])
def test_half_precision_is_summed_in_float32(kind):
    inputs = torch.full((5000, 2), 0.1, dtype=torch.bfloat16)
    statistic = kind(2)
    for part in inputs.split(1):
        statistic.add(part)
    assert statistic.value.dtype == torch.float32
    assert float(statistic.value.flatten()[0]) == pytest.approx(5000 * float(inputs[0, 0]) ** 2, rel=1e-4)
