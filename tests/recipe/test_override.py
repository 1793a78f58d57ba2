"""`--set`: what it reaches, what it says when it reaches nothing, and that errors name it."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.errors import CookError, RecipeErrors
from cook.recipe import load_recipe
from cook.recipe.override import apply

BASE = {
    "version": 1,
    "model": {"path": "some/bert", "task": "text-classification"},
    "data": {"path": "some/data"},
    "teacher": "self",
    "train": {"epochs": 3, "clip": 2.0, "seed": 7},
    "passes": [
        {"test.shrink": {"sparsity": 0.5}},
        "test.listen",
        {"test.shrink": {"sparsity": 0.9}},
    ],
    "output": {"path": "out"},
}


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.epochs=1", lambda r: r.train.epochs == 1),
        ("train.learning_rate=1e-3", lambda r: r.train.learning_rate == 1e-3),
        ("train.betas=[0.5, 0.6]", lambda r: r.train.betas == (0.5, 0.6)),
        ("train.clip=null", lambda r: r.train.clip is None),
        ("train.seed=null", lambda r: r.train.seed == 0),
        ("eval.limit=5", lambda r: r.eval.limit == 5),
        ("teacher.dtype=float16", lambda r: (r.teacher.dtype, r.teacher.path) == ("float16", "self")),
        ("teacher=other/bert", lambda r: r.teacher.path == "other/bert"),
        ("passes[1].temperature=2", lambda r: r.passes[1].options.temperature == 2),
        ("passes[test.listen].temperature=2", lambda r: r.passes[1].options.temperature == 2),
        ("passes[test.shrink#2].sparsity=0.1", lambda r: r.passes[2].options.sparsity == 0.1),
        ("passes[1]=null", lambda r: [p.id for p in r.passes] == ["test.shrink", "test.shrink#2"]),
        ("passes=[]", lambda r: r.passes == ()),
        ("passes=null", lambda r: r.passes == ()),
        ('data.label="a=b"', lambda r: r.data.label == "a=b"),
    ],
)  # fmt: skip
def test_targets(override, read):
    assert read(load_recipe(BASE, [override]))


@pytest.mark.parametrize(("written", "wanted"), [("epochs", "steps"), ("steps", "epochs")])
def test_of_two_keys_the_one_that_was_set_stays(written, wanted):
    document = {**BASE, "train": {written: 3}}
    with pytest.raises(CookError, match=f"or add --set train.{written}=null"):
        load_recipe(document, [f"train.{wanted}=5"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=x", "--set train.epochs=x: found the text 'x', expected a number above 0"),
        ("train.epoch=1", "--set train.epoch=1: unknown key 'epoch'\n  did you mean 'epochs'?"),
        ("train.epoch=null", "--set train.epoch=null: unknown key 'epoch'"),
        ("trian.epochs=1", "unknown key 'trian'\n  did you mean 'train'?"),
        ("train.steps=5", "found epochs and steps, expected exactly one of epochs and steps"),
        ("passes[7].sparsity=0", "no pass at position 7"),
        ("passes[test.lisen].temperature=2", "did you mean 'test.listen'?"),
        ("passes[test.shrink].sparsity=0", "write one of passes[0], passes[2]"),
        ("passes[0].sparsity=2", "--set passes[0].sparsity=2: found 2, expected a number of at least 0"),
        ("passes[test.listen].temperature=0", "passes[1].temperature: found 0, expected a number above 0"),
        ("passes.x=1", "the recipe has no pass 'x'"),
        ("model.path.x=1", "model.path holds the text 'some/bert'"),
        ("train.betas[0]=1", "train.betas"),
        ("train.epochs", "expected a key, '=' and a value"),
        ("=1", "expected a key, '=' and a value"),
        ("train..epochs=1", "expected a key, '=' and a value"),
        ("train.epochs=", "there is no value after '='"),
        ("train.epochs=[1", "the value cannot be read"),
        ("passes[0].include=*.weight", "needs quotes"),
        ("output.path=null", "--set output.path=null: missing"),
    ],
)
def test_mistakes_name_the_override(override, said):
    with pytest.raises(CookError) as caught:
        load_recipe(BASE, [override])
    assert said in str(caught.value)
    assert override.split("=")[0].split(".")[0].split("[")[0] in str(caught.value)


def test_a_key_inside_of_an_unknown_section_names_the_override():
    with pytest.raises(CookError, match=r"--set trian\.steps=3: trian: unknown key 'trian'"):
        load_recipe(BASE, ["trian.steps=3"])


def test_several_mistakes_at_once_and_the_last_one_wins():
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(BASE, ["train.epoch=1", "eval.limit=0", "data.limit=x"])
    assert len(caught.value.problems) == 3
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(BASE, ["nonsense", "passes[9].x=1"])
    assert len(caught.value.problems) == 2
    assert load_recipe(BASE, ["train.epochs=null", "train.steps=1", "train.steps=2"]).train.steps == 2


def test_removed_passes_leave_the_marks_of_the_others_right(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(load_recipe(BASE).to_yaml())
    whole, less = load_recipe(path), load_recipe(path, ["passes[0]=null", "passes[1]=null"])
    assert [spec.id for spec in less.passes] == ["test.shrink"]
    assert less.passes[0].where == whole.passes[2].where.replace("[2]", "[0]")


def test_the_value_given_is_left_alone():
    before = repr(BASE)
    apply(BASE, {}, ["train.epochs=1", "passes[0].sparsity=0.1", "passes[1]=null"])
    assert repr(BASE) == before


KEYS = ["train", "epochs", "passes", "test.shrink", "sparsity", "model", "path", "config", "x", "0", "7"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(max_size=30)
        | st.builds(
            lambda parts, value: "".join(parts).lstrip(".") + "=" + value,
            st.lists(
                st.sampled_from([*(f".{key}" for key in KEYS), *(f"[{key}]" for key in KEYS)]),
                min_size=1,
                max_size=4,
            ),
            st.sampled_from(["1", "null", "x", "{}", "[1]", "{a: 1}", "test.listen", "[test.listen]", "''"]),
        ),
        max_size=3,
    )
)
def test_any_override_gives_a_recipe_or_an_error(overrides):
    with contextlib.suppress(CookError):
        load_recipe(BASE, overrides)
