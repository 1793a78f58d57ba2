"""`data.augment` in recipes: what is refused, how long a run is, what is needed afterwards."""

from __future__ import annotations

import shutil

import pytest
from datasets import Dataset

import cook
from cook.errors import CookError, RecipeErrors
from cook.pipeline import evaluate, run
from cook.recipe import load_recipe
from tests.helpers import tiny
from tests.helpers.augmenting import TEXTS, masked
from tests.helpers.sections import own_cache

__all__ = ["masked", "own_cache"]
pytestmark = pytest.mark.usefixtures("clean_processes")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("workspace")
    tiny.folder(root / "bert")
    return {
        "version": 1,
        "model": {"path": str(root / "bert"), "task": "text-classification"},
        "teacher": "self",
        "data": {
            "train": str(tiny.table(root / "train.tsv", 50)),
            "validation": str(tiny.table(root / "val.tsv", 16, seed=1)),
            "text": "sentence",
            "augment": {"copies": 2},
        },
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "device": "cpu"},
        "passes": [{"distill.logits": {"end": "1 epochs"}}],
        "eval": {"latency": False},
        "output": {"path": str(root / "out")},
    }


def test_an_augmented_run_is_longer_and_says_so(recipe):
    lines: list[str] = []
    report = run(recipe, say=lines.append, progress=False)
    assert report.train["steps"] == 2 * 10, "150 rows are ten updates of 16"
    assert report.train["epochs"] == 2
    assert report.passes[0].window == (0, 9), "the first epoch"
    assert sum(line.startswith("augmented: 2 copies of 50 rows make 150; ") for line in lines) == 1


def applied(recipe, **asked):
    """The steps that a model in memory is trained for on the recipe's own data."""
    data = {**recipe["data"], **asked}
    config = {**{key: recipe[key] for key in ("version", "train", "passes")}, "data": data}
    result = cook.apply(tiny.model(), config, teacher="self", tokenizer=tiny.tokenizer())
    return result.report.train["steps"]


def test_the_limit_comes_before_the_copies(recipe):
    assert applied(recipe, limit=20) == 2 * 4, "60 rows"
    assert applied(recipe, limit=20, augment=None) == 2 * 2


def test_a_model_in_memory_is_augmented_too(recipe):
    rows = Dataset.from_dict({"sentence": TEXTS, "label": ["negative", "positive"] * 15})
    config = {key: recipe[key] for key in ("version", "train", "passes")}
    config["data"] = {"text": "sentence", "augment": {"copies": 3}}
    tokenizer = tiny.tokenizer()
    result = cook.apply(tiny.model(), config, data={"train": rows}, teacher="self", tokenizer=tokenizer)
    assert result.report.train["steps"] == 2 * 8, "120 rows"


def test_the_masked_language_model_is_needed_for_training_alone(recipe, masked, tmp_path):
    place = shutil.copytree(masked, tmp_path / "masked")
    augment = {"method": "masked-lm", "model": str(place), "copies": 1}
    assert applied(recipe, augment=augment) == 2 * 7, "100 rows"
    shutil.rmtree(place)
    asked = {**recipe, "data": {**recipe["data"], "augment": augment}}
    assert "accuracy" in evaluate(recipe["model"]["path"], asked)


@pytest.mark.parametrize(
    ("task", "asked", "place", "said"),
    [
        ("image-classification", {}, "data.augment", "there are no words in images"),
        ("text-classification", {"method": "masked-lm"}, "data.augment.model", "missing; masked-lm needs it"),
        ("text-classification", {"model": "bert"}, "data.augment.model", "there is no use for a model"),
        ("text-classification", {"share": 0}, "data.augment.share", "0"),
        ("text-classification", {"copies": 0}, "data.augment.copies", "0"),
        ("text-classification", {"method": "synonyms"}, "data.augment.method", "synonyms"),
        (
            "text-classification",
            {"method": "masked-lm", "model": "./nowhere"},
            "data.augment.model",
            "there is no './nowhere'",
        ),
    ],
)
def test_recipes_that_are_refused(recipe, task, asked, place, said):
    data = {**recipe["data"], "augment": asked}
    with pytest.raises(CookError) as caught:
        load_recipe({**recipe, "model": {**recipe["model"], "task": task}, "data": data})
    [error] = caught.value.problems if isinstance(caught.value, RecipeErrors) else [caught.value]
    assert error.where.endswith(place)
    assert said in error.message
