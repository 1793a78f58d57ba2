"""The shipped recipes do what they say: each is run in small, on tiny models and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cook
from cook.recipe import load_recipe
from tests.helpers import tiny

FOLDER = Path(__file__).parents[1] / "recipes"
TEXTS = sorted([FOLDER / "sst2.yaml", *FOLDER.glob("*/*.yaml")])
pytestmark = pytest.mark.usefixtures("clean_processes")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four layers and two tables."""
    root = tmp_path_factory.mktemp("recipes")
    tiny.folder(root / "model", layers=4)
    tiny.table(root / "train.tsv", 48)
    tiny.table(root / "validation.tsv", 16, seed=1)
    return root


def test_there_are_recipes() -> None:
    assert len(TEXTS) > 5


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_recipe_runs(path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOK_CACHE", str(workspace / "cache"))
    output = workspace / path.stem
    changes = [
        f"model.path={workspace / 'model'}",
        "data.path=null",
        f"data.train={workspace / 'train.tsv'}",
        f"data.validation={workspace / 'validation.tsv'}",
        "train.epochs=null",
        "train.steps=6",
        "train.batch_size=8",
        "eval.latency=false",
        f"output.path={output}",
    ]
    asked = load_recipe(path)
    if asked.value.get("student"):
        changes.append("student.layers=[1, 3]")
    fewer = [each.name for each in asked.passes if each.name == "prune.layers"]
    changes += ["passes[prune.layers].count=2"] if fewer else []
    narrow = [each.name for each in asked.passes if each.name == "lowrank.embedding"]
    changes += ["passes[lowrank.embedding].rank=4"] if narrow else []
    changes += ["passes[share.layers].residual=2"] if path.parent.name == "share" else []
    recipe = load_recipe(path, changes)
    report = cook.run(recipe, say=lambda _: None, progress=False)
    assert [row.name for row in report.passes] == [each.name for each in recipe.passes]
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    learned = [row.facts["layers"] for row in report.passes if row.name == "prune.structured"]
    left = 2 if fewer or recipe.value.get("student") else 4
    assert config["num_hidden_layers"] == (len(learned[0]) if learned else left)
    terms = {name for entry in report.train["history"] for name in entry.get("loss", ())}
    assert all(_term(each.name) in terms for each in recipe.passes)


def _term(name: str) -> str:
    """A term of a pass that adds one; the task's for the others."""
    first = {"distill.tinybert": "hidden states", "distill.minilm": "values"}
    return first.get(name, name.removeprefix("distill.") if name.startswith("distill.") else "task")


def test_the_quickstart_is_valid() -> None:
    for name in ("quickstart-teacher", "quickstart"):
        assert load_recipe(FOLDER / f"{name}.yaml").output.path.endswith(name)
