"""Distillation of logits against loops in Python's own floats, and gradients by finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, XLNetConfig, XLNetLMHeadModel

from cook.distill.logits import LOSSES, labelled, mean_square, soft_cross_entropy
from cook.errors import CookError
from cook.model.probe.alignment import predicts_next
from tests.helpers import bound, tiny


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def slow_ce(student: list[list[float]], teacher: list[list[float]], temperature: float) -> float:
    total = 0.0
    for s_row, t_row in zip(student, teacher, strict=True):
        s = softmax([value / temperature for value in s_row])
        t = softmax([value / temperature for value in t_row])
        total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(t, s, strict=True))
    return temperature**2 * total / len(student)


def slow_mse(student: list[list[float]], teacher: list[list[float]], temperature: float) -> float:
    squares = [
        ((s - t) / temperature) ** 2
        for s_row, t_row in zip(student, teacher, strict=True)
        for s, t in zip(s_row, t_row, strict=True)
    ]
    return sum(squares) / len(squares)


SLOW = {"ce": slow_ce, "mse": slow_mse}
CASES = st.tuples(st.integers(1, 5), st.integers(2, 6), st.floats(0.5, 20), st.integers(0, 2**31))


def logits(rows: int, classes: int, seed: int) -> tuple[list[list[float]], list[list[float]]]:
    generator = torch.Generator().manual_seed(seed)
    both = 4 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float32)
    return both[0].tolist(), both[1].tolist()


def test_every_loss_has_a_slow_twin():
    assert LOSSES.keys() == SLOW.keys()


@pytest.mark.parametrize("name", sorted(SLOW))
@settings(max_examples=50, deadline=None)
@given(case=CASES)
def test_values(name, case):
    rows, classes, temperature, seed = case
    student, teacher = logits(rows, classes, seed)
    found = LOSSES[name](torch.tensor(student), torch.tensor(teacher), temperature)
    assert found.dtype == torch.float32
    assert found.shape == ()
    rounding = 3e-7 * temperature**2  # float32's, of logarithms whose differences are then scaled by T^2
    expected = SLOW[name](student, teacher, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5 + rounding)


@pytest.mark.parametrize("name", sorted(SLOW))
@settings(max_examples=25, deadline=None)
@given(case=CASES)
def test_gradients(name, case):
    rows, classes, temperature, seed = case
    student, teacher = logits(rows, classes, seed)
    leaf = torch.tensor(student, requires_grad=True)
    LOSSES[name](leaf, torch.tensor(teacher), temperature).backward()
    step = 1e-5
    for row in range(rows):
        for column in range(classes):
            ends = []
            for sign in (1, -1):
                moved = [list(values) for values in student]
                moved[row][column] += sign * step
                ends.append(SLOW[name](moved, teacher, temperature))
            expected = (ends[0] - ends[1]) / (2 * step)
            assert float(leaf.grad[row, column]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(case=CASES)
def test_a_perfect_student_has_no_loss_and_any_other_has_some(case):
    rows, classes, temperature, seed = case
    student, teacher = (torch.tensor(values) for values in logits(rows, classes, seed))
    for loss in LOSSES.values():
        assert loss(teacher, teacher, temperature).item() == 0
        assert loss(student, teacher, temperature).item() > 0
    # A constant added to a row changes no distribution.
    moved = soft_cross_entropy(student + 3, teacher, temperature)
    torch.testing.assert_close(moved, soft_cross_entropy(student, teacher, temperature), rtol=1e-3, atol=1e-4)


def test_the_gradient_keeps_its_size_as_the_temperature_rises():
    torch.manual_seed(0)
    teacher = torch.randn(4, 5)
    sizes = []
    for temperature in (10.0, 100.0, 1000.0):
        student = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
        soft_cross_entropy(student, teacher, temperature).backward()
        sizes.append(float(student.grad.norm()))
    # Its limit is that of squared error over centred logits (Hinton et al. 2015, equation 4).
    assert sizes[1] == pytest.approx(sizes[2], rel=0.02)
    assert sizes[0] == pytest.approx(sizes[2], rel=0.2)


def test_half_precision_is_computed_in_float32():
    student, teacher = torch.randn(3, 4).half(), torch.randn(3, 4).half()
    for loss in (soft_cross_entropy, mean_square):
        assert loss(student, teacher, 2.0) == loss(student.float(), teacher.float(), 2.0)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 3), tokens=st.integers(1, 5), causal=st.booleans(), seed=st.integers(0, 2**31))
def test_rows_are_the_tokens_that_have_a_label(rows, tokens, causal, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, tokens, 3, generator=generator)
    labels = torch.randint(0, 3, (rows, tokens), generator=generator)
    labels[torch.rand(rows, tokens, generator=generator) < 0.4] = -100
    expected = []
    for row in range(rows):
        for token in range(tokens):
            about = token + 1 if causal else token
            if about < tokens and labels[row, about] != -100:
                expected.append(values[row, token].tolist())
    assert values[labelled(values, labels, causal=causal)].tolist() == expected


def test_examples_are_rows_as_they_are():
    assert labelled(torch.randn(4, 2), torch.tensor([0, 1, -100, 0])) is None


def test_without_labels_all_tokens_but_padding_are_learnt_about():
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]]).bool()
    assert labelled(torch.randn(2, 3, 5), None, mask).tolist() == mask.tolist()
    causal = labelled(torch.randn(2, 3, 5), None, mask, causal=True)
    assert causal.tolist() == [[True, True, False], [False, True, False]]


def test_labels_of_examples_are_not_taken_for_labels_of_tokens():
    with pytest.raises(ValueError, match="not by token"):
        labelled(torch.randn(2, 3, 5), torch.tensor([0, 1]))


def test_only_models_of_the_next_token_are_causal():
    config = GPT2Config(vocab_size=23, n_embd=16, n_layer=1, n_head=4, n_positions=32)
    tokens = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])

    def found(model, labels=tokens):
        return predicts_next(model, model.eval()(input_ids=tokens, labels=labels), labels)

    assert found(GPT2LMHeadModel(config))
    assert not found(tiny.model("gpt2"), torch.tensor([0, 1]))
    assert not found(XLNetLMHeadModel(XLNetConfig(vocab_size=23, d_model=16, n_layer=1, n_head=4, d_inner=8)))


@pytest.mark.parametrize("loss", sorted(SLOW))
def test_several_teachers_are_one_that_is_their_mean(loss):
    model, teachers = tiny.model().eval(), [tiny.model(seed=1), tiny.model(seed=2)]
    for teacher in teachers:
        teacher.classifier.weight.data.mul_(30)
    given = [(teachers[0], 3.0), teachers[1]]
    session = bound.session(model, {"distill.logits": {"loss": loss, "temperature": 2}}, teacher=given)
    batch = tiny.batch()
    terms = session.module(batch)
    with torch.no_grad():
        own, *others = (each(**batch).logits.tolist() for each in (model, *teachers))
    mean = []
    for rows in zip(*others, strict=True):
        if loss == "ce":
            soft = [softmax([value / 2 for value in row]) for row in rows]
            mean.append([2 * math.log(0.75 * p + 0.25 * q) for p, q in zip(*soft, strict=True)])
        else:
            mean.append([0.75 * p + 0.25 * q for p, q in zip(*rows, strict=True)])
    assert terms["logits"].item() == pytest.approx(SLOW[loss](own, mean, 2.0), rel=1e-4)
    session.close()


def test_the_term_in_a_session():
    model, teacher = tiny.model().eval(), tiny.model(seed=1)
    teacher.classifier.weight.data.mul_(30)
    options = {"temperature": 3, "weight": 0.5, "task_weight": 0.25}
    session = bound.session(model, {"distill.logits": options}, teacher=teacher)
    batch = tiny.batch()
    terms = session.module(batch)
    with torch.no_grad():
        own, others = model(**batch), teacher(**batch).logits
    expected = slow_ce(own.logits.tolist(), others.tolist(), 3.0)
    assert terms.keys() == {"task", "logits"}
    assert terms["logits"].item() == pytest.approx(0.5 * expected, rel=1e-4)
    assert session.unweighted["logits"].item() == pytest.approx(expected, rel=1e-4)
    assert terms["task"].item() == pytest.approx(0.25 * own.loss.item(), rel=1e-5)
    terms["logits"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model.classifier.weight.grad is not None


def test_a_language_model_learns_at_the_labelled_tokens_only():
    config = GPT2Config(vocab_size=23, n_embd=16, n_layer=1, n_head=4, n_positions=32)
    student, teacher = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config)
    session = bound.session(student, "distill.logits", teacher=teacher)
    batch = {name: value for name, value in tiny.batch().items() if name != "labels"}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    terms = session.module({**batch, "labels": labels})
    with torch.no_grad():
        own, others = student(**batch).logits, teacher(**batch).logits
    pairs = [(r, t) for r in range(4) for t in range(6) if labels[r, t + 1] != -100]
    expected = slow_ce([own[p].tolist() for p in pairs], [others[p].tolist() for p in pairs], 1.0)
    assert terms["logits"].item() == pytest.approx(expected, rel=1e-4)


def test_a_teacher_of_other_classes_is_refused():
    teacher = tiny.model()
    teacher.classifier = torch.nn.Linear(16, 1)
    teacher.num_labels = teacher.config.num_labels = 1
    session = bound.session(tiny.model(), "distill.logits", teacher=teacher)
    with pytest.raises(CookError, match=r"student's logits are \(4, 2\), the teacher's \(4, 1\)"):
        session.module(tiny.batch())
    session.close()


def test_a_student_gets_closer_to_its_teacher():
    teacher, student = tiny.model(seed=3), tiny.model()
    with torch.no_grad():
        teacher.classifier.weight.mul_(30)
    session = bound.session(student, {"distill.logits": {"task_weight": 0}}, steps=30, teacher=teacher)
    told = bound.train(session)
    first, last = (sum(float(t["logits"]) for t in part) for part in (told[:5], told[-5:]))
    assert last < 0.7 * first
