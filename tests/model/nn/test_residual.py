"""A shared linear layer with a residual of its own: Linear and Conv1D, whole and sliced."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cook.errors import CookError
from cook.model.nn import linear, surgery
from cook.model.nn.residual import Residual, add_residual


def filled(kind: str = "linear", rank: int = 2) -> Residual:
    torch.manual_seed(0)
    module = Residual(nn.Linear(5, 4) if kind == "linear" else Conv1D(4, 5), rank)
    with torch.no_grad():
        for each in module.parameters():
            each.normal_()
    return module


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_it_is_one_matrix_and_a_product(kind):
    module, inputs = filled(kind), torch.randn(3, 6, 5)
    whole = linear.matrix(module.shared) + module.up.weight @ module.down.weight
    expected = inputs @ whole.t() + module.shared.bias
    torch.testing.assert_close(module(inputs), expected, rtol=1e-5, atol=1e-5)


def test_it_begins_as_the_shared_layer():
    layer = nn.Linear(5, 4)
    module, inputs = Residual(layer, 2), torch.randn(3, 5)
    assert torch.equal(module(inputs), layer(inputs))
    assert module.weight is layer.weight


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_rows_and_columns_leave_all_of_it(kind):
    module, inputs = filled(kind), torch.randn(3, 5)
    rows, columns = torch.tensor([0, 2, 3]), torch.tensor([1, 4])
    only = torch.zeros(3, 5)
    only[:, columns] = inputs[:, columns]
    expected = module(only)[:, rows]
    surgery.select(module, out=rows, in_=columns)
    torch.testing.assert_close(module(inputs[:, columns]), expected)


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(CookError, match=rf"rank {rank} does not fit 0, which is 4 x 5"):
        add_residual(nn.Sequential(nn.Linear(5, 4)), "0", rank)


def test_only_linear_layers_have_one():
    with pytest.raises(CookError, match="should be a linear layer, it is a LayerNorm"):
        add_residual(nn.Sequential(nn.LayerNorm(5)), "0", 1)
