"""One teacher or several in a recipe: short forms, `--set`, and what is wrong where."""

from __future__ import annotations

import pytest

from cook.errors import CookError
from cook.recipe import load_recipe, thaw

DEFAULTS = {
    "trust_remote_code": False,
    "allow_pickle": False,
    "revision": None,
    "dtype": None,
    "weight": 1.0,
    "cache": False,
}
CACHE = {"top": 64, "dtype": None}


def recipe(teacher, *overrides):
    value = {"version": 1, "teacher": teacher}
    return load_recipe(value, overrides, partial=True)


def one(path="self", **options):
    return {"path": path, **DEFAULTS, **options}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("self", one()),
        (["self"], one()),
        ({"path": "self", "weight": 2}, one(weight=2)),
        ([{"path": "self", "cache": True}], one(cache=CACHE)),
        ({"path": "self", "cache": {}}, one(cache=CACHE)),
        ({"path": "self", "cache": {"top": 8}}, one(cache={**CACHE, "top": 8})),
        (["self", "some/bert"], [one(), one("some/bert")]),
        (["self", {"path": "some/bert", "cache": True}], [one(), one("some/bert", cache=CACHE)]),
    ],
)
def test_every_way_to_write_teachers_has_one_meaning(given, expected):
    found = recipe(given)
    assert thaw(found.teacher) == expected
    assert thaw(found.teachers) == (expected if isinstance(expected, list) else [expected])
    again = load_recipe(found, partial=True)
    assert again.digest == found.digest
    assert again.value == found.value


def test_no_teacher_is_none():
    assert load_recipe({"version": 1, "passes": []}, partial=True).teachers == ()


@pytest.mark.parametrize(
    ("given", "override", "expected"),
    [
        ("self", "teacher=some/bert", one("some/bert")),
        ("self", "teacher.dtype=bfloat16", one(dtype="bfloat16")),
        ("self", "teacher[0].dtype=bfloat16", one(dtype="bfloat16")),
        ("self", "teacher[0]=some/bert", one("some/bert")),
        ("self", "teacher.cache=true", one(cache=CACHE)),
        ({"path": "self", "cache": True}, "teacher.cache.top=7", one(cache={**CACHE, "top": 7})),
        ({"path": "self", "cache": True}, "teacher.cache=null", one()),
        ("self", "teacher=[self, some/bert]", [one(), one("some/bert")]),
        (["self", "some/bert"], "teacher[1].weight=2", [one(), one("some/bert", weight=2)]),
        (["self", "some/bert"], "teacher[1]=other/bert", [one(), one("other/bert")]),
        (["self", "some/bert"], "teacher[1].cache=true", [one(), one("some/bert", cache=CACHE)]),
    ],
)
def test_overrides(given, override, expected):
    assert thaw(recipe(given, override).teacher) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "teacher: found a list of 0, expected a list of at least 1"),
        (["self", 3], "teacher[1]: found 3, expected a text that is not empty or a mapping"),
        (["self", {"dtype": "float32"}], "teacher[1].path: missing"),
        (["self", {"path": "self", "weigth": 2}], "did you mean 'weight'?"),
        ({"path": "self", "weight": 0}, "teacher.weight: found 0, expected a number above 0"),
        (
            {"path": "self", "cache": {"top": 0}},
            "teacher.cache.top: found 0, expected a whole number of at least 1",
        ),
        ({"path": "self", "cache": "yes"}, "teacher.cache: found the text 'yes', expected true or false"),
        (["self", "./nothing"], "teacher[1].path: there is no './nothing'"),
    ],
)
def test_mistakes_stand_where_they_are(given, said):
    with pytest.raises(CookError) as caught:
        recipe(given)
    assert said in str(caught.value)


def test_setting_something_of_several_teachers_says_how():
    with pytest.raises(CookError, match=r"there is no teacher\.dtype, only a list of 2 around it"):
        recipe(["self", "some/bert"], "teacher.dtype=float16")
