"""The factors against numpy and a Cholesky factor with its inverse, as the papers write it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cook.lowrank import factors

SIZES = [(6, 6), (5, 9), (9, 5)]


def drawn(out: int, columns: int, tokens: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and inputs [in, tokens] that vary much more in some directions than in others."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, columns, generator=generator, dtype=torch.float64)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -2, columns, dtype=torch.float64)
    inputs = mixed @ (scale[:, None] * torch.randn(columns, tokens, generator=generator, dtype=torch.float64))
    return weight, inputs


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of a rank, by numpy's SVD."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def product(spectrum: factors.Spectrum, rank: int) -> Tensor:
    up, down = spectrum.factors(rank)
    assert up.shape[1] == down.shape[0] == rank
    return up @ down


@pytest.mark.parametrize(("out", "columns"), SIZES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_svd_is_that_of_numpy(out, columns, rank):
    weight, _ = drawn(out, columns)
    found = factors.svd(weight)
    np.testing.assert_allclose(product(found, rank), truncated(weight.numpy(), rank), atol=1e-9)
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    np.testing.assert_allclose(found.worth, values**2, atol=1e-9)
    assert found.lost(rank) == pytest.approx((values[rank:] ** 2).sum() / (values**2).sum())
    up, down = found.factors(rank)
    np.testing.assert_allclose(up.norm(dim=0) ** 2, values[:rank], rtol=1e-7)  # U sqrt(S), sqrt(S) V^T
    np.testing.assert_allclose(down.norm(dim=1) ** 2, values[:rank], rtol=1e-7)


@pytest.mark.parametrize(("out", "columns"), SIZES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_fisher_weighs_rows_and_undoes_it(out, columns, rank):
    weight, _ = drawn(out, columns)
    information = torch.rand(out, generator=torch.Generator().manual_seed(1)) + 0.1
    weights = np.sqrt(information.double().numpy())[:, None]
    expected = truncated(weights * weight.numpy(), rank) / weights
    np.testing.assert_allclose(product(factors.fisher(weight, information), rank), expected, atol=1e-8)


def test_rows_without_information_stay_finite():
    weight, _ = drawn(6, 9)
    information = torch.tensor([1.0, 0, 2, 0, 3, 0])
    found = product(factors.fisher(weight, information), 3)
    assert bool(found.isfinite().all())
    kept = information > 0
    error = (found - weight)[kept].norm()
    assert error < 0.05 * (product(factors.svd(weight), 3) - weight)[kept].norm()  # three rows fit exactly
    for bad in (torch.zeros(6), torch.full((6,), torch.nan)):
        with pytest.raises(ValueError, match="information"):
            factors.fisher(weight, bad)


def by_cholesky(weight: Tensor, inputs: Tensor, rank: int) -> np.ndarray:
    """SVD-LLM: truncate the SVD of W S, S S^T = X X^T, and multiply by the inverse of S."""
    lower = np.linalg.cholesky((inputs @ inputs.t()).numpy())
    return truncated(weight.numpy() @ lower, rank) @ np.linalg.inv(lower)


@pytest.mark.parametrize(("out", "columns"), SIZES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_data_is_what_a_cholesky_factor_gives(out, columns, rank):
    weight, inputs = drawn(out, columns)
    found = factors.data(weight, inputs @ inputs.t())
    assert found.jitter == 0
    np.testing.assert_allclose(product(found, rank), by_cholesky(weight, inputs, rank), atol=1e-7)
    # The closed form: what is lost are the squared singular values of W X that are cut off.
    values = np.linalg.svd((weight @ inputs).numpy(), compute_uv=False)
    lost = ((weight - product(found, rank)) @ inputs).square().sum()
    assert float(lost) == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-6)
    assert float(found.worth[rank:].sum()) == pytest.approx(float(lost), rel=1e-6)
    up, down = found.factors(rank)
    np.testing.assert_allclose(up.norm(dim=0), down.norm(dim=1), rtol=1e-7)


@pytest.mark.parametrize(("out", "columns"), [(6, 6), (5, 9)])
def test_outputs_say_as_much_as_inputs(out, columns):
    weight, inputs = drawn(out, columns)
    given = weight @ inputs
    found = factors.data_of_outputs(weight, given @ given.t(), inputs.square().sum())
    expected = factors.data(weight, inputs @ inputs.t())
    np.testing.assert_allclose(found.worth, expected.worth, atol=1e-8)
    np.testing.assert_allclose(product(found, 3), product(expected, 3), atol=1e-8)


@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 20),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_data_never_loses_more_than_svd_on_what_it_has_seen(out, columns, tokens, seed, dead, dtype):
    weight, inputs = drawn(out, columns, tokens, seed)
    if dead:
        inputs[0] = 0
    gram = (inputs.to(dtype) @ inputs.to(dtype).t()).to(dtype)
    found, plain = factors.data(weight, gram), factors.svd(weight)
    if columns >= out:
        given = (weight @ inputs).to(dtype)
        other = factors.data_of_outputs(weight, given @ given.t(), inputs.to(dtype).square().sum())
    else:
        other = found
    for rank in range(1, min(out, columns) + 1):
        worst = float(((weight - product(plain, rank)) @ inputs).norm())
        slack = 1e-3 * float((weight @ inputs).norm()) if dtype is torch.float32 else 1e-9
        for each in (found, other):
            assert float(((weight - product(each, rank)) @ inputs).norm()) <= worst + slack


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
def test_full_rank_is_the_matrix_itself(out, columns, seed):
    weight, inputs = drawn(out, columns, 30, seed)
    information = torch.rand(out, generator=torch.Generator().manual_seed(seed)) + 1e-6
    spectra = (
        factors.svd(weight),
        factors.fisher(weight, information),
        factors.data(weight, (inputs @ inputs.t()).float()),
    )
    for each in spectra:
        torch.testing.assert_close(product(each, min(out, columns)), weight, rtol=0, atol=1e-5)
        assert each.lost(min(out, columns)) == 0


def test_a_gram_matrix_that_is_not_positive_definite_gets_a_jitter():
    weight, inputs = drawn(6, 9, tokens=4)
    found = factors.data(weight, inputs @ inputs.t())
    assert found.jitter > 0
    # Four directions say all of what was seen; the rest goes by plain SVD of what is left of the weight.
    lost = ((weight - product(found, 4)) @ inputs).norm() / (weight @ inputs).norm()
    assert float(lost) < 1e-3
    seen = torch.linalg.qr(inputs).Q
    unseen = torch.eye(9, dtype=torch.float64) - seen @ seen.t()
    assert float(((weight - product(found, 5)) @ unseen).norm()) < float(
        ((weight - product(found, 4)) @ unseen).norm()
    )


def test_inputs_that_are_always_zero_leave_plain_svd():
    weight, _ = drawn(5, 9)
    expected = product(factors.svd(weight), 2)
    torch.testing.assert_close(product(factors.data(weight, torch.zeros(9, 9)), 2), expected)
    nothing = torch.zeros(5, 5), torch.zeros(())
    torch.testing.assert_close(product(factors.data_of_outputs(weight, *nothing), 2), expected)


def test_numbers_that_are_not_finite_are_refused():
    weight, _ = drawn(5, 9)
    with pytest.raises(ValueError, match="not finite"):
        factors.data(weight, torch.full((9, 9), torch.inf))


def test_a_weight_without_full_rank_is_factorised():
    weight, inputs = drawn(6, 9)
    weight[4:] = 0
    given = weight @ inputs
    for found in (
        factors.data(weight, inputs @ inputs.t()),
        factors.data_of_outputs(weight, given @ given.t(), inputs.square().sum()),
        factors.svd(weight),
    ):
        up, down = found.factors(6)
        assert bool(up.isfinite().all())
        assert bool(down.isfinite().all())
        torch.testing.assert_close(up @ down, weight, rtol=0, atol=1e-8)
        torch.testing.assert_close(product(found, 4), weight, rtol=0, atol=1e-4)
