"""The chunked losses against loops in Python's floats, and their gradients against autograd in float64."""

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cook.distill.logits import LOSSES, labelled
from cook.distill.losses import chunked
from cook.distill.losses.chunked import mean_square, mixture, soft_cross_entropy

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 6))
CASES = st.fixed_dictionaries(
    {
        "shape": SHAPES,
        "temperature": st.floats(0.5, 20),
        "weights": st.lists(st.floats(0.1, 5), min_size=1, max_size=3),
        "kind": st.sampled_from(["all", "bool", "weighted"]),
        "chunk": st.integers(1, 5),
        "seed": st.integers(0, 2**31),
    }
)


@contextmanager
def chunks(rows, classes):
    """Chunks of so few rows that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK", 4 * rows * classes)
        yield


def draw(case, dtype=torch.float64):
    """Student, teachers and rows of a case."""
    source = torch.Generator().manual_seed(case["seed"])
    student, *teachers = (
        (3 * torch.randn(case["shape"], generator=source, dtype=torch.float64)).to(dtype)
        for _ in range(1 + len(case["weights"]))
    )
    lead = case["shape"][:2]
    counts = torch.rand(lead, generator=source, dtype=torch.float64)
    rows = {"all": None, "bool": counts < 0.6, "weighted": counts * (counts < 0.6)}[case["kind"]]
    return student.requires_grad_(), teachers, rows


def row_weights(rows, lead):
    """The weight of each row, as nested lists."""
    if rows is None:
        rows = torch.ones(lead, dtype=torch.bool)
    if rows.dtype == torch.bool:
        return (rows.double() / max(int(rows.sum()), 1)).tolist()
    return rows.tolist()


def softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def slow_row(name, student, teachers, weights, temperature):
    shares = [weight / sum(weights) for weight in weights]
    if name == "mse":
        target = [
            sum(w * t for w, t in zip(shares, each, strict=True)) for each in zip(*teachers, strict=True)
        ]
        squares = [((s - t) / temperature) ** 2 for s, t in zip(student, target, strict=True)]
        return sum(squares) / len(squares)
    several = [softmax([value / temperature for value in teacher]) for teacher in teachers]
    target = [sum(w * p for w, p in zip(shares, each, strict=True)) for each in zip(*several, strict=True)]
    guess = softmax([value / temperature for value in student])
    pairs = zip(target, guess, strict=True)
    return temperature**2 * sum(p * (math.log(p) - math.log(q)) for p, q in pairs if p > 0)


def slow(name, student, teachers, weights, temperature, rows):
    total = 0.0
    for at, shares in enumerate(row_weights(rows, student.shape[:2])):
        for token, share in enumerate(shares):
            others = [teacher[at, token].tolist() for teacher in teachers]
            total += share * slow_row(name, student[at, token].tolist(), others, weights, temperature)
    return total


def plain(name, student, teachers, weights, temperature, rows):
    """What one writes with torch's own functions; its gradient is autograd's."""
    share = torch.tensor(row_weights(rows, student.shape[:2]), dtype=torch.float64)
    mean = torch.tensor(weights, dtype=torch.float64)
    mean = (mean / mean.sum())[:, None, None, None]
    several = torch.stack(teachers).double()
    if name == "mse":
        losses = ((student.double() - (mean * several).sum(0)) / temperature).square().mean(-1)
    else:
        target = (mean * (several / temperature).softmax(-1)).sum(0)
        guess = (student.double() / temperature).log_softmax(-1)
        losses = functional.kl_div(guess, target, reduction="none").sum(-1) * temperature**2
    return (losses * share).sum()


@pytest.mark.parametrize("name", sorted(LOSSES))
@settings(max_examples=40, deadline=None)
@given(case=CASES)
def test_values_and_gradients(name, case):
    student, teachers, rows = draw(case)
    weights, temperature = case["weights"], case["temperature"]
    with chunks(case["chunk"], case["shape"][-1]):
        loss = LOSSES[name](student, teachers, temperature, weights=weights, rows=rows)
        (found,) = torch.autograd.grad(loss, student)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(
        slow(name, student, teachers, weights, temperature, rows), rel=1e-9, abs=1e-10
    )
    (expected,) = torch.autograd.grad(plain(name, student, teachers, weights, temperature, rows), student)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
@settings(max_examples=20, deadline=None)
@given(case=CASES)
def test_float32(name, case):
    student, teachers, rows = draw(case, torch.float32)
    weights, temperature = case["weights"], case["temperature"]
    with chunks(case["chunk"], case["shape"][-1]):
        loss = LOSSES[name](student, teachers, temperature, weights=weights, rows=rows)
        (found,) = torch.autograd.grad(loss, student)
    reference = plain(name, student, teachers, weights, temperature, rows)
    (expected,) = torch.autograd.grad(reference, student)
    rounding = 1e-6 * temperature**2  # of logarithms, whose differences are then scaled by T^2
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5, abs=rounding)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * temperature)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_by_finite_differences(name):
    torch.manual_seed(0)
    student, *teachers = torch.randn(3, 2, 3, 5, dtype=torch.float64)
    rows = torch.tensor([[0.5, 0, 2], [1, 0.1, 0]], dtype=torch.float64)

    def loss(logits):
        return LOSSES[name](logits, teachers, 3.0, weights=[1, 2], rows=rows)

    with chunks(2, 5):  # gradcheck goes backward several times through one graph
        assert torch.autograd.gradcheck(loss, student.requires_grad_())


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_float32_rounded_at_the_end(name, dtype):
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(2, 4, 600, 64)).to(dtype)
    rows = torch.rand(4, 600) < 0.8
    leaf, whole = student.clone().requires_grad_(), student.float().requires_grad_()
    # What a loss scale and a weight do: without the scale, half of the gradients are no float16 at all.
    upstream = 2.0**16 * 0.7
    found = LOSSES[name](leaf, teacher, 2.0, rows=rows)
    expected = LOSSES[name](whole, teacher.float(), 2.0, rows=rows)
    assert torch.equal(found, expected)
    (found * upstream).backward()
    (expected * upstream).backward()
    assert leaf.grad.dtype == dtype
    steps = 2 * torch.finfo(dtype).eps  # rounded when it is stored, and when it is scaled
    torch.testing.assert_close(leaf.grad.float(), whole.grad, rtol=steps, atol=2e-7)


def test_float16_keeps_what_a_vocabulary_makes_small():
    """Weights of 2^-24 make gradients that float16 does not have, until the loss scale comes."""
    rows = 4096
    student = torch.zeros(rows, 2, dtype=torch.float16, requires_grad=True)
    weights = torch.full((rows,), 2.0**-24)
    loss = soft_cross_entropy(student, torch.tensor([[0.01, 0.0]]).expand(rows, 2), rows=weights)
    (loss * 2.0**20).backward()
    share = torch.tensor([0.01, 0.0]).softmax(0)[0] - 0.5
    torch.testing.assert_close(
        student.grad[:, 0].float(), torch.full((rows,), -float(share) / 16), rtol=2e-3, atol=0
    )


def test_float16_without_a_loss_scale():
    """The factor of the backward pass, 2^-25 here, is no float16; the gradient is one."""
    rows = 4096
    student = torch.zeros(rows, 2, dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[2.0, 0.0]])
    soft_cross_entropy(student, teacher.expand(rows, 2)).backward()
    expected = ((0.5 - teacher.softmax(-1)) / rows).expand(rows, 2)
    torch.testing.assert_close(student.grad.float(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_graph_that_is_retained_can_be_walked_again(name):
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    loss = 0.3 * LOSSES[name](student, teacher)
    loss.backward(retain_graph=True)
    once = student.grad.clone()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(student.grad, 2 * once)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_there_is_no_second_derivative():
    student = torch.randn(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        soft_cross_entropy(student, torch.randn(2, 3)).square(), student, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("rows", [torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3)])
def test_no_row_is_no_loss(name, rows):
    student = torch.randn(2, 3, 4, requires_grad=True)
    loss = LOSSES[name](student, torch.randn(2, 3, 4), rows=rows)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(student.grad, torch.zeros(2, 3, 4))
    empty = torch.randn(0, 4, requires_grad=True)
    loss = LOSSES[name](empty, torch.randn(0, 4))
    assert loss.item() == 0
    loss.backward()
    assert empty.grad.shape == (0, 4)


def test_a_row_that_does_not_count_is_not_looked_at():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    rows = torch.tensor([True, False, True])
    expected = soft_cross_entropy(student[rows], teacher[rows])
    student[1], teacher[1] = torch.nan, torch.inf
    leaf = student.requires_grad_()
    loss = soft_cross_entropy(leaf, teacher, rows=rows)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item())
    assert torch.equal(leaf.grad[1], torch.zeros(4))
    assert leaf.grad[0].abs().sum() > 0


@pytest.mark.parametrize("both", [False, True])
def test_classes_that_are_ruled_out(both):
    torch.manual_seed(0)
    student, teacher, other = torch.randn(3, 2, 5, dtype=torch.float64)
    teacher[:, 3] = -torch.inf
    if both:
        student[:, 3] = other[:, 3] = -torch.inf
    leaf = student.clone().requires_grad_()
    loss = soft_cross_entropy(leaf, [teacher, other], 2.0, weights=[1, 3])
    share = 0.25 * (teacher / 2).softmax(-1) + 0.75 * (other / 2).softmax(-1)
    terms = share * (share.log() - (student / 2).log_softmax(-1))
    assert loss.item() == pytest.approx(4 * terms.nan_to_num(0).sum().item() / 2)
    loss.backward()
    torch.testing.assert_close(leaf.grad, ((student / 2).softmax(-1) - share) * 2 / 2)
    if both:
        squares = mean_square(leaf, other, 1.0)
        gaps = (student - other)[:, [0, 1, 2, 4]]
        assert squares.item() == pytest.approx((gaps.square().sum() / 10).item())
        (found,) = torch.autograd.grad(squares, leaf)
        assert found.isfinite().all()


def test_what_the_teacher_allows_and_the_student_rules_out_is_infinite():
    student = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    assert soft_cross_entropy(student, torch.zeros(1, 2)).item() == math.inf


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_autocast_changes_nothing(name):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 9, requires_grad=True), torch.randn(2, 7, 9)
    told = []
    for on in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            loss = LOSSES[name](student, [teacher, -teacher], 3.0)
            told.append((loss, *torch.autograd.grad(loss, student)))
    for one, other in zip(*told, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


def test_strides_do_not_matter_and_nothing_is_written():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, 4).permute(1, 2, 0), torch.randn(1, 1, 6).expand(5, 4, 6)
    copies = student.clone(), teacher.clone()
    leaf = student.detach().requires_grad_()
    for loss in LOSSES.values():
        (found,) = torch.autograd.grad(loss(leaf, teacher, 2.0), leaf)
        again = copies[0].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(again, copies[1], 2.0), again)
        assert torch.equal(found, expected)
    assert torch.equal(student, copies[0])
    assert torch.equal(teacher, copies[1])


def test_without_gradients_none_is_made(monkeypatch):
    made = []
    monkeypatch.setattr(chunked.torch, "zeros", lambda *args, **given: made.append(args))
    with torch.no_grad():
        assert not soft_cross_entropy(torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)).requires_grad
    assert made == []


@settings(max_examples=40, deadline=None)
@given(case=CASES, scale=st.floats(0.1, 10))
def test_a_mixture_is_a_distribution_between_its_teachers(case, scale):
    _, teachers, _ = draw(case)
    weights, temperature = case["weights"], case["temperature"]
    found = mixture(teachers, weights, temperature).exp()
    several = torch.stack([(teacher / temperature).softmax(-1) for teacher in teachers])
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    assert (found <= several.amax(0) + 1e-12).all()
    assert (found >= several.amin(0) - 1e-12).all()
    torch.testing.assert_close(found, mixture(teachers, [scale * w for w in weights], temperature).exp())
    torch.testing.assert_close(mixture([teachers[0]] * 3), teachers[0].log_softmax(-1))


def test_a_teacher_of_no_weight_is_not_looked_at():
    student, teacher, bad = torch.randn(2, 3), torch.randn(2, 3), torch.full((2, 3), torch.nan)
    for loss in LOSSES.values():
        assert torch.equal(loss(student, [teacher, bad], weights=[2, 0]), loss(student, teacher))
    assert torch.equal(mixture([bad, teacher], [0, 5]), teacher.log_softmax(-1))


@pytest.mark.parametrize(
    ("count", "weights"), [(0, None), (2, [1]), (2, [1, -1]), (2, [0, 0]), (1, [math.nan])]
)
def test_weights_that_make_no_mean(count, weights):
    teachers = [torch.randn(2, 3) for _ in range(count)]
    with pytest.raises(ValueError, match="as many weights"):
        mixture(teachers, weights)
    with pytest.raises(ValueError, match="as many weights"):
        soft_cross_entropy(torch.randn(2, 3), teachers, weights=weights)


def test_shapes_that_differ():
    student = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match=r"a teacher's logits are \(2, 3, 5\), the student's \(2, 3, 4\)"):
        mean_square(student, torch.randn(2, 3, 5))
    for rows in (torch.ones(2, 4), torch.ones(2), torch.ones(2, 3, 4)):
        with pytest.raises(ValueError, match="do not go with rows"):
            soft_cross_entropy(student, student, rows=rows)


@settings(max_examples=50, deadline=None)
@given(
    lead=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    causal=st.booleans(),
    given_labels=st.booleans(),
    given_tokens=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_rows_that_count(lead, causal, given_labels, given_tokens, seed):
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 9, lead, generator=source)
    labels[torch.rand(lead, generator=source) < 0.4] = -100
    tokens = torch.rand(lead, generator=source) < 0.7
    found = labelled(
        torch.randn(*lead, 9),
        labels if given_labels else None,
        tokens if given_tokens else None,
        causal=causal,
    )
    for at in range(lead[0]):
        for token in range(lead[1]):
            about = token + causal
            expected = about < lead[1]
            if expected and given_labels:
                expected = labels[at, about] != -100
            if expected and given_tokens:
                expected = tokens[at, token] and tokens[at, about]
            assert bool(found[at, token]) == bool(expected)


def test_rows_that_count_in_other_shapes():
    assert labelled(torch.randn(4, 2), torch.tensor([0, 1, -100, 0])) is None
    with pytest.raises(ValueError, match="not by token"):
        labelled(torch.randn(2, 3, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(
        ValueError, match="not by token"
    ):  # a picture's logits: [batch, classes, height, width]
        labelled(torch.randn(2, 3, 4, 4), None)
