"""Patient distillation against loops over the models' own hidden states, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.distill.patient import DistillPatient, direction_distance, first_token, last_but_top, skip
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from tests.distill import own
from tests.helpers import bound, tiny


def slow_distance(student, teacher):
    """Of two lists of numbers."""
    lengths = [math.sqrt(sum(value * value for value in each)) for each in (student, teacher)]
    total = sum((s / lengths[0] - t / lengths[1]) ** 2 for s, t in zip(student, teacher, strict=True))
    return total / len(student)


def slow_loss(student, teacher, layers, *, first):
    """A mean over layers, examples, and an example's tokens; of two `Own`."""
    total = 0.0
    for mine, theirs in layers:
        one, other = student.states[mine + 1], teacher.states[theirs + 1].detach()
        for example, tokens in enumerate(student.valid):
            chosen = tokens[:1] if first else tokens
            for token in chosen:
                s, t = one[example, token], other[example, token]
                gap = sum(
                    (s[index] / s.square().sum().sqrt() - t[index] / t.square().sum().sqrt()) ** 2
                    for index in range(len(s))
                )
                total = total + gap / len(s) / len(chosen) / len(student.valid) / len(layers)
    return total


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_the_distance_and_its_gradient(width, seed):
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, width, generator=generator, dtype=torch.float64) + 0.1
    student, teacher = both[0].tolist(), both[1].tolist()
    leaf = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    found = direction_distance(leaf, both[1])
    assert found.item() == pytest.approx(slow_distance(student, teacher), abs=1e-12)
    found.backward()
    step = 1e-6 * min(1.0, float(both[0].norm()))
    for index in range(width):
        ends = []
        for sign in (1, -1):
            moved = list(student)
            moved[index] += sign * step
            ends.append(slow_distance(moved, teacher))
        expected = (ends[0] - ends[1]) / (2 * step)
        assert leaf.grad[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_distance_is_of_directions_only():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 8).unbind()
    longer = direction_distance(3 * student, 0.2 * teacher)
    torch.testing.assert_close(longer, direction_distance(student, teacher))
    # The squared distance of unit vectors is twice 1 minus their cosine.
    cosines = torch.cosine_similarity(student, teacher, dim=-1)
    torch.testing.assert_close(8 * longer, 2 - 2 * cosines)
    assert direction_distance(student, 2 * student).max() < 1e-12


def test_the_first_token_is_the_first_that_is_no_padding():
    tensor = torch.arange(12.0).view(3, 4, 1)
    valid = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]]).bool()
    assert first_token(tensor, valid).flatten().tolist() == [0, 6, 9]


@pytest.mark.parametrize(
    ("strategy", "students", "teachers", "layers"),
    [
        (skip, 6, 12, [1, 3, 5, 7, 9]),
        (skip, 3, 12, [3, 7]),
        (skip, 4, 6, [0, 2, 3]),
        (skip, 5, 12, [1, 3, 6, 8]),
        (skip, 6, 6, [0, 1, 2, 3, 4]),
        (last_but_top, 6, 12, [6, 7, 8, 9, 10]),
        (last_but_top, 4, 6, [2, 3, 4]),
        (last_but_top, 5, 12, [7, 8, 9, 10]),
    ],
)
def test_which_layers(strategy, students, teachers, layers):
    assert strategy(students, teachers) == layers


@pytest.mark.parametrize("tokens", ["first", "all"])
@pytest.mark.parametrize(
    ("family", "side"),
    [("bert", "right"), ("bert", "left"), ("gpt2", "right"), ("llama", "left"), ("vit", "")],
)
def test_values_and_gradients(family, side, tokens, monkeypatch):
    student = tiny.model(family, layers=3).eval()
    teacher = tiny.model(family, layers=5, seed=1).eval()
    batch = own.batch(family, side)
    options = {"layers": [0, 2, 4], "tokens": tokens, "weight": 3}
    with bound.session(student, {"distill.patient": options}, teacher=teacher) as session:
        terms = session.module(batch)
        mine, theirs = (own.look(model, batch, family, monkeypatch) for model in (student, teacher))
        expected = 3 * slow_loss(mine, theirs, [(0, 0), (1, 2), (2, 4)], first=tokens == "first")
        assert terms["patient"].item() == pytest.approx(expected.item(), rel=1e-4)
        assert terms["patient"].item() > 1e-5
        own.same_gradients(session, mine, terms["patient"], expected)
        assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("skip", [(0, 0), (1, 2)]),
        ("last", [(0, 2), (1, 3)]),
        ([1, 3], [(0, 1), (1, 3)]),
        ([0, -1], [(0, 0), (1, 4)]),
        ({"0": 1, "2": 4}, [(0, 1), (2, 4)]),
        ({"-1": 2}, [(2, 2)]),
        ({0: 1, 1: 3}, [(0, 1), (1, 3)]),
    ],
)
def test_layers_as_a_recipe_says_them(layers, expected):
    (each,) = bound.passes({"distill.patient": {"layers": layers}})
    pairs = each.pairs(*(Anatomy(tiny.model(layers=count)) for count in (3, 5)))
    assert [(pair.student, pair.teacher) for pair in pairs] == [
        (f"layers[{one}].output", f"layers[{other}].output") for one, other in expected
    ]


@pytest.mark.parametrize(
    ("layers", "students", "said"),
    [
        ([5], 3, "there is no layer 5: the teacher has 5, 0 to 4"),
        ([-6], 3, "there is no layer -6: the teacher has 5"),
        ([0, 1, 2, 3], 3, "there is no layer 3: the student has 3"),
        ({"3": 0}, 3, "there is no layer 3: the student has 3"),
        ({"top": 0}, 3, "'top' is no layer's number"),
        ([2, 1], 3, "must increase on both sides, found 0 from 2, 1 from 1"),
        ([1, 1], 3, "must increase"),
        ({"1": 0, "0": 1}, 3, "must increase"),
        ("skip", 1, "'skip' leaves the top layer out, and the student has no other"),
        ("last", 1, "'last' leaves the top layer out"),
        ("skip", 6, "'skip' needs a teacher layer for each of the student's 6: there are 5"),
        ("last", 6, "'last' needs a teacher layer for each"),
    ],
)
def test_layers_that_cannot_be(layers, students, said):
    student, teacher = tiny.model(layers=students), tiny.model(layers=5)
    before = len(tiny_hooks(student))
    with pytest.raises(CookError, match=said.replace("(", r"\(")) as caught:
        bound.session(student, {"distill.patient": {"layers": layers}}, teacher=teacher)
    assert caught.value.where.endswith("passes[0].layers")
    assert caught.value.hint or "no layer" in said or "increase" in said
    assert len(tiny_hooks(student)) == before


def tiny_hooks(model):
    return [hook for module in model.modules() for hook in module._forward_hooks]


def test_the_ways_out_of_what_cannot_be():
    one, many = tiny.model(layers=1), tiny.model(layers=4)
    for student, teacher, way_out in ((one, many, "layers: [3]"), (many, one, "{0: 0}")):
        with pytest.raises(CookError) as caught:
            bound.session(student, "distill.patient", teacher=teacher)
        assert way_out in caught.value.hint
    # Both work.
    for student, teacher, layers in ((one, many, [3]), (many, one, {0: 0})):
        with bound.session(student, {"distill.patient": {"layers": layers}}, teacher=teacher) as session:
            assert session.module(tiny.batch())["patient"] > 0


def test_other_widths_are_refused_and_the_way_out_is_told():
    with pytest.raises(CookError, match=r"3 x 16, the teacher's .* is 3 x 24") as caught:
        bound.session(tiny.model(), "distill.patient", teacher=tiny.model(width=24))
    assert "distill.tinybert" in caught.value.hint


PAIR = tiny.model(layers=2).eval(), tiny.model(layers=4, seed=1).eval()
TOKENS = st.sampled_from(["first", "all"])


@settings(max_examples=8, deadline=None)
@given(tokens=TOKENS, family=st.sampled_from(tiny.FAMILIES), seed=st.integers(0, 99))
def test_equal_models_have_no_loss(tokens, family, seed):
    model = tiny.model(family, layers=2, seed=seed).eval()
    options = {"tokens": tokens, "layers": [0, 1]}
    with bound.session(model, {"distill.patient": options}, teacher="self") as session:
        assert session.module(tiny.batch(family, seed=seed))["patient"].item() == 0


@settings(max_examples=20, deadline=None)
@given(
    tokens=TOKENS,
    size=st.integers(2, 6),
    length=st.integers(4, 9),
    more=st.integers(1, 5),
    where=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_neither_padding_nor_cutting_a_batch_changes_the_value(tokens, size, length, more, where, seed):
    batch, where = tiny.batch(size=size, length=length, seed=seed), min(where, size - 1)
    student, teacher = PAIR
    with bound.session(student, {"distill.patient": {"tokens": tokens}}, teacher=teacher) as session:
        whole, longer, first, second = (
            session.module(part)["patient"].item()
            for part in (
                batch,
                own.padded(batch, more),
                own.cut(batch, 0, where),
                own.cut(batch, where, size),
            )
        )
    assert longer == pytest.approx(whole, rel=1e-4)
    assert (where * first + (size - where) * second) / size == pytest.approx(whole, rel=1e-4)


def test_a_student_turns_to_where_its_teacher_points():
    teacher, student = tiny.model(layers=4, seed=3), tiny.model(layers=2)
    options = {"tokens": "all", "task_weight": 0, "weight": 100}
    session = bound.session(student, {"distill.patient": options}, steps=30, teacher=teacher)
    told = bound.train(session)
    first, last = (sum(float(terms["patient"]) for terms in part) for part in (told[:5], told[-5:]))
    assert last < 0.7 * first
    assert all(terms["task"] == 0 for terms in told)


def test_it_is_a_pass_that_ends_with_nothing_left():
    assert DistillPatient.phase == "observe"
    student = tiny.model()
    names = set(student.state_dict())
    session = bound.session(student, {"distill.patient": {"layers": [0]}}, teacher="self")
    session.finish()
    assert set(student.state_dict()) == names
    assert not tiny_hooks(student)
