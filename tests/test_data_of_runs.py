"""Data as runs use them: validation cut out of train, rows that are dropped, options of files in corpora."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cook.cli import main
from cook.data.corpus import corpus
from cook.data.tasks import find
from cook.errors import CookError
from cook.pipeline.evaluate import open_folder
from cook.pipeline.inputs import read_data
from cook.recipe import load_recipe
from tests.helpers import tiny
from tests.test_pipeline import silent, write


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a semicolon-separated table of 41 rows of which one has no label."""
    root = tmp_path_factory.mktemp("resources")
    tiny.folder(root / "bert")
    lines = tiny.table(root / "plain.tsv", 40).read_text().replace("\t", ";")
    (root / "all.csv").write_text(f"{lines}good, film;\n")
    return root


def recipe(resources: Path, name: str, **data: Any) -> Path:
    section = {"train": "all.csv", "validation": {"split": "25%", "stratify": True}, "text": "sentence"}
    return write(
        resources / f"{name}.yaml",
        data={**section, **data},
        train={"steps": 2, "batch_size": 8},
        passes=[{"prune.weights": {"sparsity": 0.5}}],
        eval={"latency": False},
    )


def test_a_run_and_its_evaluation_cut_the_same_rows(
    resources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(resources, "dropped", missing="drop")
    assert main(["run", str(path)]) == 0
    said = "1 of 41 rows are left out, which have no label: line 42 of all.csv (counted from 1)"
    printed = capsys.readouterr()
    assert said in " ".join((printed.out + printed.err).split())
    report = json.loads((resources / "out" / "dropped" / "report.json").read_text())
    assert report["data"]["rows"] == {"train": 30, "validation": 10}
    data = read_data(load_recipe(path), silent)
    assert data.counts == {"train": 30, "validation": 10}
    opened = open_folder(resources / "out" / "dropped", path)
    assert len(opened.rows["validation"]) == 10
    again = open_folder(resources / "out" / "dropped", resources / "out" / "dropped" / "recipe.yaml")
    assert again.rows["validation"]["input_ids"][:] == opened.rows["validation"]["input_ids"][:]


def test_a_run_refuses_an_empty_label(resources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(resources, "refused")
    for verb in ("plan", "run"):
        assert main([verb, str(path)]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "data.label: column 'label' is empty in 1 of 41 rows of train: line 42 of all.csv" in said
        assert "data.missing: drop" in said


def test_evaluation_needs_no_training_file_where_validation_is_one(resources: Path) -> None:
    path = recipe(resources, "apart", train="plain.tsv", validation="val.tsv")
    tiny.table(resources / "val.tsv", 8, seed=3)
    assert main(["run", str(path), "--quiet"]) == 0
    text = path.read_text().replace("plain.tsv", "gone.tsv")
    path.write_text(text)
    assert len(open_folder(resources / "out" / "apart", path).rows["validation"]) == 8


def test_the_rows_that_are_evaluated_are_counted(resources: Path) -> None:
    path = recipe(resources, "limited", train="plain.tsv", limit=20)
    assert main(["run", str(path), "--quiet", "--set", "eval.limit=4"]) == 0
    report = json.loads((resources / "out" / "limited" / "report.json").read_text())
    assert report["data"]["rows"] == {"train": 20, "validation": 4}


def test_corpora_are_read_with_the_options_of_data(tmp_path: Path) -> None:
    table = tmp_path / "corpus.csv"
    table.write_bytes('text;label\ncaf\u00e9, good;1\n;0\n"a\nb";1\n'.encode("cp1252"))
    options = {"encoding": "cp1252", "delimiter": ";"}
    asked = load_recipe({"version": 1, "data": options, "passes": []}, partial=True)
    task = find("text-classification")(asked.data, asked.error)
    assert list(corpus(task)([str(table)])) == ["caf\u00e9, good", "a\nb"]
    plain = load_recipe({"version": 1, "data": {}, "passes": []}, partial=True)
    with pytest.raises(CookError, match="not UTF-8") as caught:
        list(corpus(find("text-classification")(plain.data, plain.error))([str(table)]))
    assert "data.encoding: cp1252" in str(caught.value)
