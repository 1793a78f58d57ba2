"""SparseGPT against the paper's algorithm in float64 loops, and against what it is for: small errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.model.calibration.hessian import DAMPING, inverse_factor
from cook.prune.weights.sparsegpt import sparsegpt


def slow_sparsegpt(weight, gram, *, sparsity=0.5, pattern=None, block=128, damping=DAMPING):
    """Optimal brain surgery, a column and a row at a time; the inverse Hessian of the columns that are left
    is computed anew for each column instead of being read off a factor (section 3.2 of the paper).

    Args:
        weight: [out][in], of Python numbers.
        gram: a float64 matrix.
    """
    weight = [list(row) for row in weight]
    out, width = len(weight), len(weight[0])
    hessian = gram + damping * gram.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    inverses = [torch.linalg.inv(hessian[column:, column:]) for column in range(width)]
    keep = [[True] * width for _ in range(out)]

    def score(row, column):
        return weight[row][column] ** 2 / float(inverses[column][0, 0])

    for column in range(width):
        if pattern is None and column % block == 0:
            columns = range(column, min(column + block, width))
            places = [(row, other) for row in range(out) for other in columns]
            count = round(sparsity * out * (columns[-1] + 1)) - round(sparsity * out * column)
            for row, other in sorted(places, key=lambda place: score(*place))[:count]:
                keep[row][other] = False
        if pattern is not None and column % pattern[1] == 0:
            for row in range(out):
                group = sorted(range(column, column + pattern[1]), key=lambda other: score(row, other))
                for other in group[: pattern[1] - pattern[0]]:
                    keep[row][other] = False
        inverse = inverses[column]
        for row in range(out):
            if not keep[row][column]:
                error = weight[row][column] / float(inverse[0, 0])
                for other in range(column, width):
                    weight[row][other] -= error * float(inverse[0, other - column])
                weight[row][column] = 0.0
    return weight, keep


def problem(out, width, *, tokens=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    inputs = torch.randn(tokens or 4 * width, width, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(out, width, generator=generator, dtype=torch.float64)
    return weight, inputs.t() @ inputs


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 4),
    width=st.integers(2, 40),
    sparsity=st.floats(0, 1),
    block=st.sampled_from([3, 16, 20, 128]),
    seed=st.integers(0, 2**31),
)
def test_any_sparsity_against_a_column_at_a_time(out, width, sparsity, block, seed):
    weight, gram = problem(out, width, seed=seed)
    factor, damping = inverse_factor(gram)
    found, keep = sparsegpt(weight, factor, sparsity=sparsity, block=block)
    expected, kept = slow_sparsegpt(weight.tolist(), gram, sparsity=sparsity, block=block)
    assert damping == DAMPING
    assert keep.tolist() == kept
    assert int((~keep).sum()) == round(sparsity * out * width)
    assert bool((found[~keep] == 0).all())
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 3),
    groups=st.integers(1, 8),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda sizes: sizes[0] <= sizes[1]),
    block=st.sampled_from([3, 16, 128]),
    seed=st.integers(0, 2**31),
)
def test_any_pattern_against_a_column_at_a_time(out, groups, sizes, block, seed):
    weight, gram = problem(out, groups * sizes[1], seed=seed)
    found, keep = sparsegpt(weight, inverse_factor(gram)[0], pattern=sizes, block=block)
    expected, kept = slow_sparsegpt(weight.tolist(), gram, pattern=sizes)
    assert keep.tolist() == kept
    assert (keep.view(out, groups, sizes[1]).sum(-1) == sizes[0]).all()
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_float32_agrees_with_float64_and_the_input_is_left_alone(pattern):
    weight, gram = problem(64, 256, seed=1)
    before = weight.float()
    given_ = before.clone()
    exact, _ = sparsegpt(before, inverse_factor(gram)[0], pattern=pattern)
    found, keep = sparsegpt(given_, inverse_factor(gram.float())[0], pattern=pattern)
    assert torch.equal(given_, before)
    assert found.dtype == torch.float32
    assert float((~keep).float().mean()) == 0.5
    # Near ties fall otherwise, and all that follows: the outputs are what has to agree.
    assert harm(found.double(), weight, gram) == pytest.approx(harm(exact, weight, gram), rel=0.02)


def harm(new, weight, gram):
    """The squared error of a layer's outputs over the inputs that `gram` was summed over."""
    return float(((new - weight) @ gram * (new - weight)).sum())


def test_what_stays_makes_up_for_what_goes():
    weight, gram = problem(16, 64, seed=2)
    found, keep = sparsegpt(weight, inverse_factor(gram)[0])
    least = torch.zeros_like(weight)
    for row, kept in enumerate(keep):
        least[row, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row])
    harms = [harm(each, weight, gram) for each in (least, found, weight * keep)]
    assert harms == sorted(harms)
    assert harms[1] < 0.8 * harms[2]


def test_an_input_that_is_never_there_goes_first():
    weight, gram = problem(4, 8, seed=3)
    gram[2] = gram[:, 2] = 0
    _, keep = sparsegpt(100 * weight, inverse_factor(gram)[0], sparsity=1 / 8)
    assert keep.tolist() == [[column != 2 for column in range(8)]] * 4


def test_no_input_at_all_is_no_failure():
    factor, _ = inverse_factor(torch.zeros(4, 4))
    assert bool(factor.isfinite().all())


def test_what_has_no_factor_is_damped_until_it_has_one():
    gram = torch.full((6, 6), 1.0)
    gram[0, 1] = gram[1, 0] = 1.05  # indefinite by more than the damping
    factor, damping = inverse_factor(gram)
    assert damping == pytest.approx(10 * DAMPING)
    hessian = gram.double() + damping * torch.eye(6, dtype=torch.float64)
    assert torch.allclose((factor.t() @ factor).double(), torch.linalg.inv(hessian), rtol=1e-3, atol=1e-3)


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        inverse_factor(torch.full((2, 2), torch.inf))
