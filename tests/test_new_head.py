"""`model.head: new`: data with other labels than the model was trained on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from cook import apply
from cook.errors import CookError
from cook.pipeline import evaluate, plan, run
from cook.recipe import load_recipe
from tests.helpers import tiny
from tests.test_pipeline import silent

LABELS = ("question", "order", "complaint")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two classes, and texts of three intents, each with a word of its own."""
    root = tmp_path_factory.mktemp("shop")
    tiny.folder(root / "bert")
    for name, rows, seed in (("train", 96, 0), ("val", 24, 1)):
        source = random.Random(seed)
        lines = ["sentence\tlabel"]
        for row in range(rows):
            words = [*source.choices(tiny.WORDS[8:], k=3), tiny.WORDS[row % 3]]
            lines.append(f"{' '.join(words)}\t{LABELS[row % 3]}")
        (root / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return root


def recipe(shop: Path, name: str, **model: Any) -> Any:
    return load_recipe(
        {
            "version": 1,
            "model": {"path": str(shop / "bert"), "task": "text-classification", **model},
            "data": {
                "train": str(shop / "train.tsv"),
                "validation": str(shop / "val.tsv"),
                "text": "sentence",
            },
            "train": {"steps": 60, "batch_size": 16, "learning_rate": 1e-2},
            "passes": [{"prune.weights": {"sparsity": 0.2}}],
            "eval": {"latency": False},
            "output": {"path": str(shop / name)},
        }
    )


def test_a_head_that_does_not_fit_names_the_key(shop: Path) -> None:
    with pytest.raises(CookError, match="labels that the model does not") as caught:
        plan(recipe(shop, "out"))
    assert "model.head: new" in str(caught.value.hint)


def test_a_run_trains_a_new_head(shop: Path) -> None:
    asked = recipe(shop, "out", head="new")
    assert plan(asked).before["parameters"] > 0
    said: list[str] = []
    report = run(asked, say=said.append, progress=False)
    assert any("a new one starts from random weights" in line for line in said)
    reached = report.model.after.metrics["accuracy"]
    assert reached > 0.6
    found = evaluate(shop / "out", asked)  # the head that was trained, and not another new one
    assert found["accuracy"] == pytest.approx(reached)


def test_labels_may_have_names_of_their_own(shop: Path) -> None:
    named = recipe(shop, "named", head="new", labels=["complaint", "order", "question"])
    assert plan(named).before["parameters"] > 0
    with pytest.raises(CookError, match=r"3 labels are given, the model in .* has 2") as caught:
        plan(recipe(shop, "named", labels=["complaint", "order", "question"]))
    assert "head: new" in str(caught.value.hint)


def test_a_new_head_needs_data() -> None:
    with pytest.raises(CookError, match=r"model\.head: a new head needs data"):
        load_recipe(
            {
                "version": 1,
                "model": {"path": "some/bert", "head": "new"},
                "output": {"path": "out"},
            }
        )


def test_a_new_head_has_nothing_to_teach(shop: Path) -> None:
    value = {
        **{key: item for key, item in recipe(shop, "taught", head="new").value.items() if key != "passes"},
        "teacher": "self",
        "passes": ["distill.logits"],
    }
    with pytest.raises(CookError, match="it has nothing to teach"):
        run(value, say=silent, progress=False)
    with pytest.raises(CookError, match="head starts from random weights: it has nothing to teach"):
        plan(load_recipe(value))


def test_labels_of_a_model_in_memory_are_named_without_a_path() -> None:
    rows = {"sentence": ["good film", "bad plot"], "label": ["yes", "no"]}
    train: dict[str, Any] = {"version": 1, "train": {"steps": 1, "batch_size": 2}}
    with pytest.raises(CookError, match=r"labels that the model does not.*\n.*num_labels=2"):
        apply(tiny.model(), train, data={"train": rows}, tokenizer=tiny.tokenizer())
    named = {**train, "model": {"labels": ["no", "yes"]}}
    result = apply(tiny.model(), named, data={"train": rows}, tokenizer=tiny.tokenizer())
    assert result.model.config.id2label == {0: "no", 1: "yes"}
    with pytest.raises(CookError, match=r"model\.head: a model in memory keeps the head"):
        apply(
            tiny.model(),
            {**train, "model": {"head": "new"}},
            data={"train": rows},
            tokenizer=tiny.tokenizer(),
        )
