"""TinyBERT's losses against loops over the models' own states and scores, in float64."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

import cook
from cook.distill.pairs import last, uniform
from cook.distill.specs import PARTS, TERMS
from cook.distill.tinybert import score_distance, state_distance
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.recipe import load_recipe
from tests.distill import own
from tests.helpers import bound, tiny

PAIRS = [(0, 0), (1, 2), (2, 4)]
"""Three layers learn from five, uniformly: 5/3, 10/3 and 15/3, rounded down and counted from 0."""


def slow_states(student, teacher, valid):
    """Mean squares of [batch, tokens, width], over the valid tokens."""
    total = 0.0
    for example, tokens in enumerate(valid):
        for token in tokens:
            one, other = student[example, token], teacher[example, token]
            squares = sum((one[index] - other[index]) ** 2 for index in range(len(one)))
            total = total + squares / len(one) / len(tokens) / len(valid)
    return total


def slow_scores(student, teacher, seen):
    """Mean squares of [batch, heads, tokens, tokens], over what is seen."""
    total = 0.0
    for example, rows in enumerate(seen):
        places = [(q, k) for q, row in enumerate(rows) for k, there in enumerate(row) if there]
        heads = student.shape[1]
        for head, (q, k) in itertools.product(range(heads), places):
            gap = (student[example, head, q, k] - teacher[example, head, q, k]) ** 2
            total = total + gap / heads / len(places) / len(seen)
    return total


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 3), tokens=st.integers(1, 4), heads=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_the_distances_and_their_gradients(size, tokens, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(size, tokens, generator=generator) < 0.7
    valid[:, 0] = True
    seen = valid[:, :, None] & valid[:, None, :]
    places = [[token for token in range(tokens) if row[token]] for row in valid.tolist()]
    for found, slow, shape, arguments in (
        (state_distance, slow_states, (size, tokens, heads), (valid, places)),
        (score_distance, slow_scores, (size, heads, tokens, tokens), (seen, seen.tolist())),
    ):
        student, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64).unbind()
        values, gradients = [], []
        for function, given_valid in zip((found, slow), arguments, strict=True):
            leaf = student.clone().requires_grad_()
            values.append(function(leaf, teacher, given_valid))
            gradients.append(torch.autograd.grad(values[-1], leaf)[0])
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*gradients)
        # Whatever stands in padding has no say.
        strange = student.masked_fill(~(valid[:, :, None] if student.dim() == 3 else seen[:, None]), 1e9)
        torch.testing.assert_close(found(strange, teacher, arguments[0]), values[0].detach())


@pytest.mark.parametrize(
    ("strategy", "students", "teachers", "layers"),
    [
        (uniform, 4, 12, [2, 5, 8, 11]),
        (uniform, 6, 12, [1, 3, 5, 7, 9, 11]),
        (uniform, 4, 6, [0, 2, 3, 5]),
        (uniform, 5, 12, [1, 3, 6, 8, 11]),
        (uniform, 1, 7, [6]),
        (uniform, 3, 3, [0, 1, 2]),
        (last, 4, 6, [2, 3, 4, 5]),
        (last, 5, 12, [7, 8, 9, 10, 11]),
        (last, 1, 4, [3]),
    ],
)
def test_which_layers(strategy, students, teachers, layers):
    assert strategy(students, teachers) == layers


@given(students=st.integers(1, 40), more=st.integers(0, 60))
def test_the_uniform_map_is_that_of_the_paper(students, more):
    teachers = students + more
    # g(i) = i * M / N counts from 1, and the top learns from the top.
    expected = [int(layer * teachers / students + 1e-9) for layer in range(1, students + 1)]
    assert [layer + 1 for layer in uniform(students, teachers)] == expected
    assert expected[-1] == teachers
    assert expected == sorted(set(expected))


@pytest.mark.parametrize(
    ("family", "side", "projection", "width"),
    [
        ("bert", "right", "none", 16),
        ("bert", "left", "shared", 24),
        ("bert", "right", "each", 24),
        ("gpt2", "right", "each", 24),
        ("gpt2", "left", "none", 16),
        ("llama", "right", "shared", 24),
        ("llama", "left", "each", 16),
        ("vit", "", "shared", 24),
        ("vit", "", "none", 16),
    ],
)
def test_values_and_gradients(family, side, projection, width, monkeypatch):
    student = tiny.model(family, layers=3).eval()
    teacher = tiny.model(family, layers=5, width=width, seed=1).eval()
    for model in (student, teacher):
        for parameter in model.parameters():
            parameter.data.mul_(4 if parameter.dim() > 1 else 1)  # or scores would be near 0
    batch = own.batch(family, side)
    options = {"projection": projection, "hidden": 2, "attention": 3, "weight": 0.5}
    with bound.session(student, {"distill.tinybert": options}, teacher=teacher) as session:
        matrices = list(session.module.trained.parameters())
        assert len(matrices) == {"none": 0, "shared": 1, "each": 4}[projection]
        for matrix in matrices:
            assert torch.equal(matrix, torch.eye(width, 16))
            torch.nn.init.normal_(matrix, std=0.5)
        terms = session.module(batch)
        mine, theirs = (own.look(model, batch, family, monkeypatch) for model in (student, teacher))
        doubles = [matrix.detach().double().requires_grad_() for matrix in matrices]
        # The embeddings and three layers, in this order.
        each = {"none": [None] * 4, "shared": doubles * 4, "each": doubles}[projection]
        places = zip([0, 1, 2, 3], [0, 1, 3, 5], each, strict=True)
        states = [
            slow_states(
                mine.states[one] if matrix is None else mine.states[one] @ matrix.T,
                theirs.states[other].detach(),
                mine.valid,
            )
            for one, other, matrix in places
        ]
        scores = [
            slow_scores(mine.scores[one], theirs.scores[other].detach(), mine.seen) for one, other in PAIRS
        ]
        expected = {
            "embeddings": 0.5 * states[0],
            "hidden states": sum(states[1:]) / 3,
            "attention scores": 1.5 * sum(scores) / 3,
        }
        assert list(terms) == ["task", *TERMS.values()]
        for name in TERMS.values():
            assert terms[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name
            assert terms[name].item() > 1e-4
            own.same_gradients(session, mine, terms[name], expected[name])
        if matrices:
            found, wanted = (sum(each[name] for name in TERMS.values()) for each in (terms, expected))
            ours = torch.autograd.grad(found, matrices)
            for one, other in zip(ours, torch.autograd.grad(wanted, doubles), strict=True):
                assert other.abs().max() > 1e-3
                torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5)


def test_parts_are_chosen_and_the_rest_is_not_computed():
    student, teacher = tiny.model().eval(), tiny.model(seed=1).eval()
    everything = {}
    for count in (1, 2, 3):
        for parts in itertools.combinations(PARTS, count):
            with bound.session(
                student, {"distill.tinybert": {"parts": list(parts)}}, teacher=teacher
            ) as session:
                terms = session.module(tiny.batch())
                assert set(terms) == {"task", *(TERMS[part] for part in parts)}
                everything.setdefault(parts[0], terms[TERMS[parts[0]]].item())
                assert terms[TERMS[parts[0]]].item() == everything[parts[0]]
                assert ("attention" in parts) == any(
                    "scores" in pair.student for pair in session.passes[0].watched
                )


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("uniform", PAIRS),
        ("last", [(0, 2), (1, 3), (2, 4)]),
        ([1, 3], [(0, 1), (1, 3)]),
        ({"0": 1, "2": -1}, [(0, 1), (2, 4)]),
        ({1: 3}, [(1, 3)]),
    ],
)
def test_layers_as_a_recipe_says_them(layers, expected):
    (each,) = bound.passes({"distill.tinybert": {"layers": layers}})
    found = each.pairs(*(Anatomy(tiny.model(layers=count)) for count in (3, 5)))
    names = [(pair.student, pair.teacher, pair.projected) for pair in found]
    assert names == [
        ("embeddings.output", "embeddings.output", True),
        *((f"layers[{one}].output", f"layers[{other}].output", True) for one, other in expected),
        *(
            (f"layers[{one}].attention.scores", f"layers[{other}].attention.scores", False)
            for one, other in expected
        ),
    ]


@pytest.mark.parametrize(
    ("layers", "students", "said"),
    [
        ([5], 3, "there is no layer 5: the teacher has 5, 0 to 4"),
        ({"3": 0}, 3, "there is no layer 3: the student has 3"),
        ([2, 1], 3, "must increase on both sides, found 0 from 2, 1 from 1"),
        ("uniform", 6, "'uniform' needs a teacher layer for each of the student's 6: there are 5"),
        ("last", 6, "'last' needs a teacher layer"),
    ],
)
def test_layers_that_cannot_be(layers, students, said):
    with pytest.raises(CookError, match=said) as caught:
        bound.session(
            tiny.model(layers=students),
            {"distill.tinybert": {"layers": layers}},
            teacher=tiny.model(layers=5),
        )
    assert caught.value.where.endswith("passes[0].layers")


def other_heads() -> BertForSequenceClassification:
    config = tiny.model().config.to_dict() | {"num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**config))


def test_other_heads_are_refused_and_the_way_out_works():
    with pytest.raises(CookError, match=r"4 x 3 x 3, the teacher's .* is 2 x 3 x 3") as caught:
        bound.session(tiny.model(), "distill.tinybert", teacher=other_heads())
    assert "parts: [embeddings, hidden]" in caught.value.hint
    parts = {"parts": ["embeddings", "hidden"]}
    with bound.session(tiny.model(), {"distill.tinybert": parts}, teacher=other_heads()) as session:
        assert set(session.module(tiny.batch())) == {"task", "embeddings", "hidden states"}


def test_other_widths_without_a_projection_are_refused():
    options = {"projection": "none"}
    with pytest.raises(CookError, match=r"3 x 16, the teacher's .* is 3 x 24") as caught:
        bound.session(tiny.model(), {"distill.tinybert": options}, teacher=tiny.model(width=24))
    assert "projection: shared" in caught.value.hint
    # Scores have no width.
    options["parts"] = ["attention"]
    with bound.session(tiny.model(), {"distill.tinybert": options}, teacher=tiny.model(width=24)) as session:
        assert session.module(tiny.batch())["attention scores"] > 0


PAIR = tiny.model(layers=2).eval(), tiny.model(layers=4, width=24, seed=1).eval()


@settings(max_examples=10, deadline=None)
@given(family=st.sampled_from(tiny.FAMILIES), projection=st.sampled_from(["none", "shared", "each"]))
def test_equal_models_have_no_loss(family, projection):
    model = tiny.model(family).eval()
    with bound.session(model, {"distill.tinybert": {"projection": projection}}, teacher="self") as session:
        terms = session.module(tiny.batch(family))
    assert all(terms[TERMS[part]].item() < 1e-10 for part in PARTS)


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(2, 6),
    length=st.integers(4, 9),
    more=st.integers(1, 5),
    where=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_neither_padding_nor_cutting_a_batch_changes_the_values(size, length, more, where, seed):
    batch, where = tiny.batch(size=size, length=length, seed=seed), min(where, size - 1)
    student, teacher = PAIR
    with bound.session(student, "distill.tinybert", teacher=teacher) as session:
        whole, longer, first, second = (
            session.module(part)
            for part in (
                batch,
                own.padded(batch, more),
                own.cut(batch, 0, where),
                own.cut(batch, where, size),
            )
        )
    for part in TERMS.values():
        assert longer[part].item() == pytest.approx(whole[part].item(), rel=1e-4)
        shared = (where * first[part] + (size - where) * second[part]) / size
        assert shared.item() == pytest.approx(whole[part].item(), rel=1e-4)


def test_the_projection_learns_and_is_dropped():
    teacher, student = tiny.model(layers=4, width=24, seed=3), tiny.model()
    names = set(student.state_dict())
    session = bound.session(student, {"distill.tinybert": {"task_weight": 0}}, steps=30, teacher=teacher)
    (matrix,) = session.module.trained.parameters()
    before = matrix.detach().clone()
    told = bound.train(session)
    for part in ("embeddings", "hidden"):
        first, final = (sum(float(terms[TERMS[part]]) for terms in rows) for rows in (told[:5], told[-5:]))
        assert final < 0.8 * first
    assert (matrix - before).abs().max() > 0.01
    session.finish()
    assert set(student.state_dict()) == names


@pytest.mark.usefixtures("clean_processes")
def test_two_stages_are_windows_of_one_run(tmp_path: Path):
    tiny.folder(tmp_path / "teacher", layers=4)
    tiny.table(tmp_path / "train.tsv", 32)
    tiny.table(tmp_path / "validation.tsv", 8, seed=1)
    recipe = tmp_path / "stages.yaml"
    recipe.write_text(
        """
version: 1
model: {path: ./teacher, task: text-classification}
student: {layers: [1, 3]}
teacher: self
data: {train: train.tsv, validation: validation.tsv, text: sentence}
train: {steps: 6, batch_size: 8, learning_rate: 1e-2, log_every: 1}
passes:
  - distill.tinybert: {layers: {0: 1, 1: 3}, end: 50%, task_weight: 0}
  - distill.logits: {start: 50%, temperature: 2}
output: {path: out}
"""
    )
    report = cook.run(recipe)
    told = [entry["loss"] for entry in report.train["history"] if "loss" in entry]
    assert len(told) == 6
    for number, losses in enumerate(told):
        names = {name for name in losses if not name.endswith("(unweighted)")} - {"gradient norm"}
        assert names == ({"task", *TERMS.values()} if number < 3 else {"task", "logits"})
        assert (losses["task"] == 0) == (number < 3)
        assert losses["task (unweighted)"] > 0
    # What is written says the same, keys as text.
    written = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert written.digest == load_recipe(recipe).digest
    stored = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert {str(k): v for k, v in stored["passes"][0]["distill.tinybert"]["layers"].items()} == {
        "0": 1,
        "1": 3,
    }
