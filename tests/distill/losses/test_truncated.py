"""Truncated teachers against loops in Python's floats, and against the loss of the whole teacher."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.distill.losses.chunked import mixture, soft_cross_entropy
from cook.distill.losses.truncated import top, truncated_cross_entropy
from tests.distill.losses.test_chunked import CASES, chunks, draw, row_weights, softmax

KEPT = st.integers(1, 7)


def slow_row(student, teacher, k, temperature):
    kept = sorted(range(len(teacher)), key=lambda column: -teacher[column])[:k]
    guess, target = (softmax([value / temperature for value in row]) for row in (student, teacher))
    p = [target[column] for column in kept] + [sum(v for i, v in enumerate(target) if i not in kept)]
    q = [guess[column] for column in kept] + [sum(v for i, v in enumerate(guess) if i not in kept)]
    return temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


@settings(max_examples=40, deadline=None)
@given(case=CASES, k=KEPT)
def test_top(case, k):
    _, (logits, *_), _ = draw(case)
    temperature = case["temperature"]
    with chunks(case["chunk"], case["shape"][-1]):
        values, indices, rest = top(logits, k, temperature)
    assert indices.dtype == torch.int32
    for position in torch.ones(case["shape"][:2]).nonzero().tolist():
        row = logits[tuple(position)].tolist()
        kept = indices[tuple(position)].tolist()
        assert values[tuple(position)].tolist() == sorted(row, reverse=True)[:k]
        assert values[tuple(position)].tolist() == [row[column] for column in kept]
        powers = [math.exp(value / temperature) for column, value in enumerate(row) if column not in kept]
        expected = math.log(sum(powers)) if powers else -math.inf
        assert rest[tuple(position)].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(case=CASES, k=KEPT)
def test_values(case, k):
    student, (teacher, *_), rows = draw(case)
    temperature = case["temperature"]
    with chunks(case["chunk"], case["shape"][-1]):
        found = truncated_cross_entropy(student, *top(teacher, k, temperature), temperature, rows=rows)
    expected = sum(
        share * slow_row(student[at, token].tolist(), teacher[at, token].tolist(), k, temperature)
        for at, shares in enumerate(row_weights(rows, case["shape"][:2]))
        for token, share in enumerate(shares)
    )
    assert found.item() == pytest.approx(expected, rel=1e-8, abs=1e-9)
    whole = soft_cross_entropy(student, teacher, temperature, rows=rows)
    assert found.item() <= whole.item() + 1e-9


@pytest.mark.parametrize("k", [1, 3, 4, 5])
def test_gradients_by_finite_differences(k):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    kept = top(teacher, k, 2.0)
    with chunks(2, 5):
        assert torch.autograd.gradcheck(
            lambda logits: truncated_cross_entropy(logits, *kept, 2.0), student.requires_grad_()
        )


@settings(max_examples=30, deadline=None)
@given(case=CASES, beyond=st.integers(-1, 2))
def test_it_is_the_whole_loss_when_one_class_or_none_is_left_out(case, beyond):
    student, (teacher, *_), rows = draw(case)
    temperature = case["temperature"]
    kept = top(teacher, case["shape"][-1] + beyond, temperature)
    told = []
    for loss in (
        truncated_cross_entropy(student, *kept, temperature, rows=rows),
        soft_cross_entropy(student, teacher, temperature, rows=rows),
    ):
        told.append((loss, *torch.autograd.grad(loss, student)))
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_it_is_the_whole_loss_of_a_student_that_divides_the_rest_alike():
    torch.manual_seed(0)
    teacher = torch.randn(4, 9, dtype=torch.float64)
    student = teacher.clone()
    _, indices, _ = kept = top(teacher, 3, 2.0)
    student.scatter_add_(-1, indices.long(), torch.randn(4, 3, dtype=torch.float64))
    student.requires_grad_()
    found, whole = truncated_cross_entropy(student, *kept, 2.0), soft_cross_entropy(student, teacher, 2.0)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found, whole)))


def test_the_gradient_of_several_is_that_of_their_mixture():
    torch.manual_seed(0)
    student, one, other = torch.randn(3, 4, 6, dtype=torch.float64)
    student.requires_grad_()
    apart = 0.25 * truncated_cross_entropy(student, *top(one, 6, 3.0), 3.0)
    apart = apart + 0.75 * truncated_cross_entropy(student, *top(other, 6, 3.0), 3.0)
    together = soft_cross_entropy(student, [one, other], 3.0, weights=[1, 3])
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (apart, together)))
    # Or kept together, as logits that the temperature softens to the mixture.
    kept = top(3.0 * mixture([one, other], [1, 3], 3.0), 6, 3.0)
    torch.testing.assert_close(truncated_cross_entropy(student, *kept, 3.0), together)


def test_a_rest_too_small_to_be_subtracted():
    """1 - p would be 0 in float32; the mass is 2e-9 and must still be told from half of it."""
    teacher = torch.tensor([[20.0, 0.0, 0.0]])
    student = torch.tensor([[20.0, -1.0, -1.0]], requires_grad=True)
    values, indices, rest = top(teacher, 1)
    assert rest.item() == pytest.approx(math.log(2))
    truncated_cross_entropy(student, values, indices, rest).backward()
    mass = 2 * math.exp(-20)
    expected = mass / 2 * (math.exp(-1) - 1)
    assert student.grad[0, 1:].tolist() == pytest.approx([expected] * 2, rel=1e-4)


def test_classes_that_are_ruled_out():
    student = torch.randn(2, 5, dtype=torch.float64)
    teacher = torch.tensor([[1.0, 2, *[-math.inf] * 3], [1, 2, 3, 4, -math.inf]], dtype=torch.float64)
    student[:, -1] = -torch.inf
    student.requires_grad_()
    for k in (2, 3, 4):
        values, indices, rest = top(teacher, k)
        assert not rest.isnan().any()
        found = truncated_cross_entropy(student, values, indices, rest)
        (gradient,) = torch.autograd.grad(found, student)
        assert found.isfinite()
        assert gradient.isfinite().all()
    torch.testing.assert_close(found, soft_cross_entropy(student, teacher))
    nothing_left = torch.tensor([[0.0, -math.inf, -math.inf]], requires_grad=True)
    loss = truncated_cross_entropy(nothing_left, *top(torch.zeros(1, 3), 1))
    assert loss.item() == math.inf


def test_half_precision_and_no_row():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 40).bfloat16()
    values, indices, rest = top(teacher, 5)
    assert values.dtype == torch.bfloat16
    assert rest.dtype == torch.float32
    leaf, whole = student.clone().requires_grad_(), student.float().requires_grad_()
    found = truncated_cross_entropy(leaf, values, indices, rest)
    expected = truncated_cross_entropy(whole, values.float(), indices, rest)
    assert torch.equal(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(leaf.grad.float(), whole.grad, rtol=2**-7, atol=0)
    none = torch.zeros(6, dtype=torch.bool)
    loss = truncated_cross_entropy(leaf, values, indices, rest, rows=none)
    assert loss.item() == 0
    loss.backward()


def test_parts_that_do_not_belong_together():
    values, indices, rest = top(torch.randn(2, 3, 7), 4)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\), \(2, 3, 4\), \(2, 4\)"):
        truncated_cross_entropy(torch.randn(2, 3, 7), values, indices, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="do not go with rows"):
        truncated_cross_entropy(torch.randn(2, 4, 7), values, indices, rest)
