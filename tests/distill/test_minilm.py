"""MiniLM's relations against loops over batch, heads, queries and keys, in float64."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cook.distill.minilm import regrouped, relation, relation_divergence
from cook.distill.specs import RELATIONS
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from tests.distill.own import same_in_parts_and_padded
from tests.helpers import bound, families, tiny

# The functions


def slow_divergence(student: Tensor, teacher: Tensor, seen: list[list[list[bool]]]) -> Tensor:
    """The mean over examples, heads and valid tokens of KL(teacher || student) over what a token sees."""
    total = torch.zeros((), dtype=torch.float64)
    for example, rows in enumerate(seen):
        valid = [token for token, row in enumerate(rows) if any(row)]
        for head in range(student.shape[1]):
            for token in valid:
                keys = [key for key, there in enumerate(rows[token]) if there]
                mine, theirs = (
                    [scores[example, head, token, key].exp() for key in keys] for scores in (student, teacher)
                )
                for one, other in zip(mine, theirs, strict=True):
                    guess, target = one / sum(mine), other / sum(theirs)
                    share = len(seen) * student.shape[1] * len(valid)
                    total = total + target * (target.log() - guess.log()) / share
    return total


def slow_relation(factor: Tensor, heads: int) -> Tensor:
    """Every token with every other, piece by piece of their numbers: [batch, heads, tokens, tokens]."""
    examples = []
    for example in factor:
        tokens = [torch.cat(list(example[:, token])) for token in range(example.shape[1])]
        width = len(tokens[0]) // heads
        pieces = [[token[head * width : (head + 1) * width] for token in tokens] for head in range(heads)]
        rows = [[[(one * other).sum() / width**0.5 for other in piece] for one in piece] for piece in pieces]
        examples.append(torch.stack([torch.stack([torch.stack(row) for row in piece]) for piece in rows]))
    return torch.stack(examples)


def slow_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Each head's queries with the keys that it shares with its neighbours."""
    count, shared = queries.shape[1], queries.shape[1] // keys.shape[1]
    heads = [queries[:, head] @ keys[:, head // shared].transpose(1, 2) for head in range(count)]
    return torch.stack(heads, 1) / queries.shape[-1] ** 0.5


@st.composite
def cases(draw):
    """Scores of student and teacher, and what is seen: padding anywhere, causal or not."""
    size, heads, tokens = (draw(st.integers(1, most)) for most in (3, 3, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    student, teacher = 3 * torch.randn(2, size, heads, tokens, tokens, generator=generator)
    valid = torch.rand(size, tokens, generator=generator) < 0.7
    valid[:, 0] = True
    seen = valid[:, :, None] & valid[:, None, :]
    return student, teacher, seen.tril() if draw(st.booleans()) else seen


@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_the_divergence_and_its_gradient(case):
    student, teacher, seen = case
    leaf, slow = student.clone().requires_grad_(), student.double().requires_grad_()
    found = relation_divergence(leaf, teacher, seen)
    expected = slow_divergence(slow, teacher.double(), seen.tolist())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    found.backward()
    (gradient,) = torch.autograd.grad(expected, slow, allow_unused=True)
    torch.testing.assert_close(leaf.grad.double(), gradient, rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(case=cases(), junk=st.sampled_from([0.0, -1e6, 1e6]), split=st.integers(1, 2))
def test_what_the_divergence_does_not_depend_on(case, junk, split):
    student, teacher, seen = case
    assert relation_divergence(teacher, teacher, seen) == 0
    expected = relation_divergence(student, teacher, seen)
    assert expected >= -1e-6
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(relation_divergence(student.where(seen[:, None], junk), teacher, seen), expected)
    for sides in ((0, 2, 0, 2), (1, 0, 1, 0)):
        wide = [torch.nn.functional.pad(each, sides, value=junk) for each in (student, teacher)]
        close(relation_divergence(*wide, torch.nn.functional.pad(seen, sides)), expected)
    pieces = zip(student.split(split), teacher.split(split), seen.split(split), strict=True)
    parts = [len(piece[0]) * relation_divergence(*piece) for piece in pieces]
    close(torch.stack(parts).sum() / len(student), expected)


@settings(max_examples=25, deadline=None)
@given(
    before=st.integers(1, 4),
    width=st.integers(1, 6),
    tokens=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_relations(before, width, tokens, seed, data):
    heads = data.draw(st.sampled_from([count for count in range(1, 25) if before * width % count == 0]))
    factor = torch.randn(2, before, tokens, width, generator=torch.Generator().manual_seed(seed))
    found = relation(regrouped(factor, heads))
    torch.testing.assert_close(found.double(), slow_relation(factor.double(), heads), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(regrouped(factor, before), factor)


# In models

SIZES = {
    "bert": {"hidden_size": 24, "num_attention_heads": 2},
    "gpt2": {"n_embd": 24, "n_head": 2},
    "llama": {"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1},
    "mistral": {"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1},
    "vit": {"hidden_size": 24, "num_attention_heads": 2},
}
"""Teachers of other widths and heads: for version 2."""
WIDER = {family: {"n_embd" if family == "gpt2" else "hidden_size": 32} for family in SIZES}
"""Teachers of other widths: for version 1."""


def slow_terms(student, teacher, inputs, family, options) -> dict[str, Tensor]:
    """The losses of two models in float64, from their weights."""
    found = []
    for model, layer in ((student, options["student_layer"]), (teacher, options["teacher_layer"])):
        output = model(**inputs, output_hidden_states=True)
        found.append(families.factors(model, layer, output.hidden_states[layer]))
    mine, theirs = found
    seen = families.attended(family, inputs, mine[0].shape[2]).tolist()
    if options["version"] == 1:
        heads = theirs[2].shape[1]
        return {
            "attention": slow_divergence(slow_scores(*mine[:2]), slow_scores(*theirs[:2]), seen),
            "values": slow_divergence(slow_relation(mine[2], heads), slow_relation(theirs[2], heads), seen),
        }
    heads = options.get("heads") or teacher.config.num_attention_heads
    return {
        name: slow_divergence(slow_relation(one, heads), slow_relation(other, heads), seen)
        for name, one, other in zip(RELATIONS, mine, theirs, strict=True)
        if name in options.get("relations", RELATIONS)
    }


V1 = {"version": 1, "student_layer": 0, "teacher_layer": 1}
V2 = {"version": 2, "student_layer": 1, "teacher_layer": 0}
CASES = [
    *((family, False, V1) for family in SIZES),
    *((family, False, V2) for family in SIZES),
    ("bert", True, V1),
    ("llama", True, V2),
    ("mistral", True, V1),
    ("bert", False, {**V2, "heads": 4, "relations": ["values"]}),
    ("llama", False, {**V2, "heads": 4, "relations": ["keys", "queries"]}),
]


@pytest.mark.parametrize(("family", "left", "options"), CASES)
def test_losses_of_models(family, left, options):
    student = families.made(family)
    teacher = families.made(family, **(WIDER if options["version"] == 1 else SIZES)[family])
    inputs = families.batch(family, left=left)
    slow, slow_teacher = (copy.deepcopy(each).double() for each in (student, teacher))
    wide = {name: each.double() if each.is_floating_point() else each for name, each in inputs.items()}
    expected = slow_terms(slow, slow_teacher.requires_grad_(False), wide, family, options)
    session = bound.session(student, {"distill.minilm": {**options, "weight": 2.0}}, teacher=teacher)
    found = session.module(inputs)
    del found["task"]
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.item() > 1e-3, "models that agree would show nothing"
        torch.testing.assert_close(value.double(), 2 * expected[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(session.unweighted[name].double(), expected[name], rtol=1e-4, atol=1e-6)
    sum(found.values()).backward()
    (2 * sum(expected.values())).backward()
    for (name, one), other in zip(student.named_parameters(), slow.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if other.grad is not None:
            assert (one.grad - other.grad).abs().max() < 1e-4 * max(1.0, other.grad.abs().max()), name
    assert all(each.grad is None for each in teacher.parameters())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_micro_batches_and_padding_change_nothing(family):
    student, teacher = tiny.model(family), tiny.model(family, seed=1)
    inputs = tiny.batch(family, size=5)
    session = bound.session(
        student.eval(), "distill.minilm", {"distill.minilm": {"version": 1}}, teacher=teacher
    )
    same_in_parts_and_padded(session, inputs)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(family):
    for options in ({"version": 1}, {"version": 2}):
        session = bound.session(tiny.model(family).eval(), {"distill.minilm": options}, teacher="self")
        terms = session.module(tiny.batch(family))
        assert len(terms) == 2 + options["version"]
        assert all(abs(term) < 1e-6 for name, term in terms.items() if name != "task")


# Errors


def refused(student, teacher, **options) -> CookError:
    [made] = bound.passes({"distill.minilm": options})
    with pytest.raises(CookError) as planned:
        made.plan(Anatomy(student, [Anatomy(teacher)]))
    with pytest.raises(CookError) as attached:
        bound.session(student, {"distill.minilm": options}, teacher=teacher)
    assert str(attached.value) == str(planned.value)
    return planned.value


@pytest.mark.parametrize(("option", "who"), [("student_layer", "student"), ("teacher_layer", "teacher")])
@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_is_not_there(option, who, layer):
    error = refused(tiny.model(layers=3), tiny.model(layers=3), **{option: layer})
    assert f"there is no layer {layer}: the {who} has 3, 0 to 2" in str(error)
    assert error.where.endswith(option)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_version_1_needs_equal_heads(family):
    error = refused(families.made(family), families.made(family, **SIZES[family]), version=1)
    assert "attention.scores is 4 x 3 x 3, the teacher's layers[1].attention.scores is 2 x 3 x 3" in str(
        error
    )
    assert "version: 2" in error.hint


def test_version_1_needs_equal_groups_of_values():
    error = refused(families.made("llama"), families.made("llama", num_key_value_heads=4), version=1)
    assert "attention.values is 2 x 3 x 4" in str(error)
    assert "version: 2" in error.hint


def test_relation_heads_must_divide():
    error = refused(families.made("bert"), families.made("bert", hidden_size=24, num_attention_heads=6))
    assert "the student's layers[1].attention.queries has 16 numbers a token, which 6 relation heads" in str(
        error
    )
    assert error.where.endswith("heads")
    assert "divisor" in error.hint
    error = refused(families.made("bert"), families.made("bert", hidden_size=24), heads=16)
    assert "the teacher's layers[1].attention.queries has 24 numbers" in str(error)


def test_examples_must_be_as_many_tokens():
    error = refused(families.made("vit"), families.made("vit", patch_size=2))
    assert "is 4 x 5 x 4, the teacher's layers[1].attention.queries is 4 x 17 x 4" in str(error)
    assert "the same number of tokens" in error.hint


@pytest.mark.parametrize(("option", "value"), [("heads", 2), ("relations", ["values"])])
def test_options_of_version_2(option, value):
    with pytest.raises(CookError, match=f"{option} belongs to version 2"):
        bound.passes({"distill.minilm": {"version": 1, option: value}})
