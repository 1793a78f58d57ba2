"""Layers in pairs, means over tokens, projections, and which teacher is meant."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.distill.pairs import last, layer_map, projection, token_mean, uniform
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.pipeline.inputs import make_passes
from cook.recipe import load_recipe
from tests.helpers import bound, tiny

DEPTHS = st.integers(1, 30).flatmap(lambda deep: st.tuples(st.integers(1, deep), st.just(deep)))
HIDDEN = {"map": {"layers[0].output": "layers[1].output"}}

# Layers


def test_published_maps():
    assert uniform(4, 12) == [2, 5, 8, 11]  # TinyBERT, 3, 6, 9 and 12 counted from 1
    assert uniform(6, 12) == [1, 3, 5, 7, 9, 11]
    assert last(4, 12) == [8, 9, 10, 11]


@given(depths=DEPTHS)
def test_strategies_reach_the_top_and_make_maps(depths):
    students, teachers = depths
    for strategy in (uniform, last):
        found = strategy(students, teachers)
        assert found[-1] == teachers - 1
        assert layer_map(found, students, teachers) == list(enumerate(found))
    assert uniform(teachers, teachers) == last(teachers, teachers) == list(range(teachers))


@settings(max_examples=50)
@given(depths=DEPTHS, data=st.data())
def test_a_map_may_be_written_in_many_ways(depths, data):
    students, teachers = depths
    count = data.draw(st.integers(1, students))
    mine = sorted(data.draw(st.permutations(range(students)))[:count])
    theirs = sorted(data.draw(st.permutations(range(teachers)))[:count])
    pairs = list(zip(mine, theirs, strict=True))
    shuffled = data.draw(st.permutations(pairs))
    for keys in (str, int):
        assert layer_map({keys(one): other for one, other in shuffled}, students, teachers) == pairs
    from_the_end = {str(one - students): other - teachers for one, other in shuffled}
    assert layer_map(from_the_end, students, teachers) == pairs
    assert layer_map(theirs, students, teachers) == list(enumerate(theirs))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([0, 6], "there is no layer 6: the teacher has 6, 0 to 5"),
        ([0, -7], "there is no layer -7: the teacher has 6, 0 to 5"),
        ([0, 1, 2, 3], "there is no layer 3: the student has 3, 0 to 2"),
        ({"3": 1}, "there is no layer 3: the student has 3, 0 to 2"),
        ([2, 1], "must increase on both sides, found 0 from 2, 1 from 1"),
        ([2, 2], "found 0 from 2, 1 from 2"),
        ({"2": 0, "0": 5}, "found 0 from 5, 2 from 0"),
        ({"0": 1, "-3": 2}, "found 0 from 1, 0 from 2"),
        ({"first": 1}, "'first' is no layer's number"),
        ({"1.5": 1}, "'1.5' is no layer's number"),
    ],
)
def test_maps_that_cannot_be(written, message):
    with pytest.raises(CookError, match=message):
        layer_map(written, 3, 6)


WRITTEN = {
    "yaml": "version: 1\npasses: [{distill.patient: {layers: {2: 3, 0: -6}}}]",
    "text in yaml": "version: 1\npasses: [{distill.patient: {layers: {'2': 3, '0': -6}}}]",
    "json": '{"version": 1, "passes": [{"distill.patient": {"layers": {"2": 3, "0": -6}}}]}',
}


@pytest.mark.parametrize("kind", [*WRITTEN, "numbers in python", "text in python"])
def test_a_map_in_a_recipe(kind, tmp_path):
    if kind in WRITTEN:
        source = tmp_path / ("recipe.json" if kind == "json" else "recipe.yaml")
        source.write_text(WRITTEN[kind])
    else:
        layers = {2: 3, 0: -6} if "numbers" in kind else {"2": 3, "0": -6}
        source = {"version": 1, "passes": [{"distill.patient": {"layers": layers}}]}
    [made] = make_passes(load_recipe(source, partial=True))
    assert layer_map(made.options.layers, 3, 6) == [(0, 0), (2, 3)]


# Means over tokens


def slow_mean(values: list[list[float]], valid: list[list[bool]]) -> float:
    rows = []
    for row, counts in zip(values, valid, strict=True):
        kept = [value for value, count in zip(row, counts, strict=True) if count]
        rows.append(sum(kept) / len(kept) if kept else 0.0)
    return sum(rows) / len(rows)


GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))


def grid(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return values, torch.rand(rows, columns, generator=generator) < 0.6


@settings(deadline=None)
@given(case=GRIDS)
def test_the_mean_over_tokens_against_loops(case):
    values, valid = grid(*case)
    leaf = values.clone().requires_grad_()
    found = token_mean(leaf, valid)
    assert found.item() == pytest.approx(slow_mean(values.tolist(), valid.tolist()))
    found.backward()
    share = valid / (valid.sum(1, keepdim=True).clamp(min=1) * len(valid))
    torch.testing.assert_close(leaf.grad, share.double())


@settings(deadline=None)
@given(case=GRIDS, junk=st.sampled_from([0.0, 1e30, float("inf"), float("nan")]), split=st.integers(1, 4))
def test_neither_padding_nor_pieces_change_the_mean(case, junk, split):
    values, valid = grid(*case)
    expected = token_mean(values, valid)
    padded = torch.cat([values, torch.full_like(values, junk)], 1).requires_grad_()
    found = token_mean(padded, torch.cat([valid, torch.zeros_like(valid)], 1))
    torch.testing.assert_close(found, expected)
    found.backward()
    assert torch.isfinite(padded.grad).all()
    pieces = zip(values.split(split), valid.split(split), strict=True)
    means = [len(piece) * token_mean(piece, counts) for piece, counts in pieces]
    torch.testing.assert_close(torch.stack(means).sum() / len(values), expected)


# Projections


@pytest.mark.parametrize(("mine", "theirs"), [(3, 5), (5, 3), (4, 4)])
def test_a_projection_begins_in_the_same_coordinates(mine, theirs):
    random = torch.get_rng_state()
    made = projection(mine, theirs)
    given = torch.randn(2, mine)
    both = min(mine, theirs)
    assert torch.equal(made(given)[:, :both], given[:, :both])
    assert not made(given)[:, both:].any()
    assert made.bias is None
    torch.set_rng_state(random)
    torch.testing.assert_close(torch.randn(2, mine), given)


def planned(student, *teachers, **options):
    [made] = bound.passes({"distill.hidden": {**HIDDEN, **options}})
    return made.plan(Anatomy(student, [Anatomy(each) for each in teachers]))


def test_widths_that_differ_need_a_projection():
    student, teacher = tiny.model(), tiny.model(width=24)
    with pytest.raises(CookError, match=r"layers.0..output is 3 x 16, the teacher's .* is 3 x 24") as told:
        planned(student, teacher)
    assert "projection: shared" in told.value.hint
    for kind in ("shared", "each"):
        assert planned(student, teacher, projection=kind).note == "layers[0].output from layers[1].output"


def test_one_projection_for_several_widths_is_refused_when_planned():
    several = {"layers[0].output": "layers[0].output", "logits": "logits"}
    with pytest.raises(CookError, match=r"\[\(2, 2\), \(16, 24\)\]") as told:
        planned(tiny.model(), tiny.model(width=24), map=several, projection="shared")
    assert told.value.hint == "set projection: each"
    assert told.value.where.endswith(".projection")
    planned(tiny.model(), tiny.model(width=24), map=several, projection="each")


@pytest.mark.parametrize(("kind", "count"), [("shared", 1), ("each", 2), ("none", 0)])
def test_how_many_projections_there_are(kind, count):
    item = {
        "map": {f"layers[{layer}].output": f"layers[{layer}].output" for layer in (0, 1)},
        "projection": kind,
    }
    session = bound.session(tiny.model(), {"distill.hidden": item}, teacher="self")
    assert len(list(session.module.trained.parameters())) == count
    assert len(session.module.trained) == (count > 0)


# Teachers


def test_which_teacher():
    student, teachers = tiny.model(), [tiny.model(), tiny.model(seed=1), tiny.model(seed=2)]
    item = {"distill.hidden": {**HIDDEN, "teacher": 2}}
    session = bound.session(student, item, teacher=teachers)
    session.module(tiny.batch())
    found = session.teachers[2].tensor("layers[1].output")
    inputs = {name: each for name, each in tiny.batch().items() if name != "labels"}
    expected = teachers[2](**inputs, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(found, expected)
    with pytest.raises(KeyError):
        session.teachers[0].tensor("layers[1].output")


@pytest.mark.parametrize(("count", "message"), [(1, "there is one"), (2, "there are 2")])
def test_a_teacher_that_is_not_there(count, message):
    teachers = [tiny.model() for _ in range(count)]
    with pytest.raises(CookError, match=f"there is no teacher 2: {message}") as told:
        planned(tiny.model(), *teachers, teacher=2)
    assert told.value.where.endswith(".teacher")
    with pytest.raises(CookError, match=f"there is no teacher 2: {message}"):
        bound.session(tiny.model(), {"distill.hidden": {**HIDDEN, "teacher": 2}}, teacher=teachers)


def test_a_plan_without_a_teacher_says_so():
    assert "not there" in planned(tiny.model()).note


@pytest.mark.parametrize(("who", "name"), [("student", "layers[2].output"), ("teacher", "layers[3].output")])
def test_an_error_in_a_name_says_in_which_model(who, name):
    other = "layers[0].output"
    names = {name: other} if who == "student" else {other: name}
    with pytest.raises(CookError, match=f"in the {who}, layers.[23].: the model has") as told:
        planned(tiny.model(), tiny.model(layers=2 if who == "student" else 3), map=names)
    assert told.value.where.endswith("passes[0]")


def test_whole_numbers_teach_nothing():
    words = "bert.embeddings.word_embeddings[in]"
    with pytest.raises(CookError, match=r"word_embeddings\[in\] holds whole numbers") as told:
        planned(tiny.model(), tiny.model(), map={words: words})
    assert told.value.hint


@pytest.mark.parametrize("name", ["distill.hidden", "distill.logits"])
def test_a_window_without_a_step_is_refused(name):
    options = {**(HIDDEN if name == "distill.hidden" else {}), "end": "40%"}
    with pytest.raises(CookError, match="begins and ends at step 0 of 1: nothing is learned"):
        bound.session(tiny.model(), {name: options}, steps=1, teacher=tiny.model())
    bound.session(tiny.model(), {name: options}, steps=5, teacher=tiny.model()).close()
