"""`cook run` without a train section: passes act at once, with and without data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from cook.cli import main
from cook.errors import CookError
from cook.recipe import load_recipe
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("clean_processes")

PASSES: dict[str, dict[str, Any]] = {
    "weights": {"prune.weights": {"sparsity": 0.5}},
    "qat": {"quant.qat": {"weights": "int8", "observer": "token"}},
    "layers": {"prune.layers": {"keep": [0]}},
}


def written(root: Path, name: str, *, data: bool, **sections: Any) -> Path:
    """A recipe without training, beside the model and the table that it names."""
    if not (root / "bert").exists():
        tiny.folder(root / "bert")
        tiny.table(root / "rows.tsv", 16)
    value: dict[str, Any] = {
        "version": 1,
        "model": {"path": str(root / "bert"), "task": "text-classification"},
        "eval": {"latency": False},
        "output": {"path": str(root / "out" / name)},
        **sections,
    }
    if data:
        table = str(root / "rows.tsv")
        value["data"] = {"train": table, "validation": table, "text": "sentence"}
    path = root / f"{name}.json"
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("data", [False, True], ids=["alone", "data"])
@pytest.mark.parametrize("name", PASSES)
def test_passes_act_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bool
) -> None:
    recipe = written(tmp_path, name, data=data, passes=[PASSES[name]])
    assert main(["plan", str(recipe)]) == 0
    assert next(iter(PASSES[name])) in capsys.readouterr().out
    assert main(["run", str(recipe)]) == 0
    folder = tmp_path / "out" / name
    names = {path.name for path in folder.iterdir()}
    assert names >= {"README.md", "recipe.yaml", "report.json", "config.json", "tokenizer.json"}
    report = json.loads((folder / "report.json").read_text())
    assert report["train"] is None
    assert report["model"]["auto_class"] == "AutoModelForSequenceClassification"
    assert ("accuracy" in report["model"]["after"]["metrics"]) == data
    assert report.get("data", {}).get("rows") == ({"train": 16, "validation": 16} if data else None)
    (row,) = report["passes"]
    after, before = report["model"]["after"], report["model"]["before"]
    assert row["amounts"] == {
        "zeros": after["zeros"] - before["zeros"],
        "removed": after["removed"],
        "bytes": after["bytes"] - before["bytes"],
    }
    assert any(row["amounts"].values())
    AutoModelForSequenceClassification.from_pretrained(folder)
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert row["facts"]["note"] in " ".join(capsys.readouterr().out.split())
    if data:
        assert main(["eval", str(folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == after["metrics"]


def test_a_head_is_kept_without_a_task(tmp_path: Path) -> None:
    recipe = written(tmp_path, "untold", data=False, passes=[PASSES["weights"]])
    assert main(["run", str(recipe), "--quiet", "--set", "model.task=null"]) == 0
    report = json.loads((tmp_path / "out" / "untold" / "report.json").read_text())
    assert report["model"]["auto_class"] == "AutoModelForSequenceClassification"
    assert main(["run", str(recipe), "--quiet", "--set", "model.task=null", "--resume"]) == 0


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"prune.weights": {"sparsity": 0.5, "method": "wanda"}}, "data: missing; prune.weights needs it"),
        ({"distill.logits": {}}, "train: missing; distill.logits needs it"),
    ],
)
def test_a_pass_that_needs_more_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, step: dict[str, Any], words: str
) -> None:
    recipe = written(tmp_path, "refused", data=False, passes=[step])
    assert main([verb, str(recipe)]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"steps": 1}, "passes": [PASSES["weights"]]}, "data: missing; train needs it"),
        ({"passes": []}, "nothing to do"),
    ],
)
def test_what_has_nothing_to_work_on_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: dict[str, Any], words: str
) -> None:
    assert main(["run", str(written(tmp_path, "none", data=False, **sections))]) == 2
    assert words in capsys.readouterr().err


def test_a_teacher_without_training_is_refused(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "bert")
    value = {
        "version": 1,
        "model": {"path": str(tmp_path / "bert")},
        "teacher": "self",
        "passes": ["quant.qat"],
        "output": {"path": str(tmp_path / "out")},
    }
    with pytest.raises(CookError, match="nothing is trained, so nothing learns from a teacher"):
        load_recipe(value)
