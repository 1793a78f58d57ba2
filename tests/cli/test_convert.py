"""`cook convert`: recipes from the configs of BMCook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cook.cli import main
from cook.recipe import bmcook, load_recipe
from cook.recipe.recipe import load_document
from cook.recipe.text import parse
from tests.helpers import tiny

CONFIG: dict[str, Any] = {
    "distillation": {
        "ce_scale": 0.5,
        "ce_temp": 2,
        "mse_hidn_scale": 1,
        "mse_hidn_module": [
            "[post]bert.encoder.layer.0.output:[pre]bert.encoder.layer.1.attention.self.query"
        ],
        "mse_hidn_proj": True,
    },
    "pruning": {
        "is_pruning": True,
        "pruning_mask_path": "mask.bin",
        "pruned_module": ["output.dense.weight", "word_embeddings"],
        "mask_method": "m4n2_1d",
    },
    "quantization": {"is_quant": True, "quantized_module": ["intermediate"]},
    "MoEfication": {"is_moefy": False, "first_FFN_module": ["x"]},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "bmcook.json"
    file.write_text(json.dumps(CONFIG, indent=2))
    return file


def test_the_recipe_is_printed_or_written(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(config)]) == 0
    printed = capsys.readouterr().out
    target = config.with_name("recipe.yaml")
    assert main(["convert", str(config), "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"{target} is written\n"
    assert target.read_text() == printed
    document = bmcook.recipe_document(parse.read(config))
    recipes = [load_document(document, config.parent, partial=True), load_recipe(target, partial=True)]
    assert len({each.digest for each in recipes}) == 1


def test_a_file_is_not_overwritten_unless_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = config.with_name("recipe.yaml")
    target.write_text("mine")
    assert main(["convert", str(config), "-o", str(target)]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["convert", str(config), "-o", str(target), "--force"]) == 0
    assert "prune.weights" in target.read_text()
    assert main(["convert", str(config), "-o", str(config.parent / "absent" / "r.yaml")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_nothing_is_written_for_a_config_with_mistakes(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = config.with_name("recipe.yaml")
    config.write_text(json.dumps({**CONFIG, "MoEfication": {"is_moefy": True}}))
    assert main(["convert", str(config), "-o", str(target)]) == 2
    assert "MoEfication.is_moefy" in capsys.readouterr().err
    assert not target.exists()
    config.write_text('{"version": 1, "passes": []}')
    assert main(["convert", str(config), "-o", str(target)]) == 2
    assert "this is no config of BMCook" in capsys.readouterr().err
    assert main(["convert", str(config.with_name("absent.json"))]) == 2


@pytest.mark.usefixtures("clean_processes")
def test_it_validates_plans_and_runs(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config.parent
    tiny.folder(folder / "bert")
    train = tiny.table(folder / "train.tsv", 32)
    validation = tiny.table(folder / "val.tsv", 16, seed=1)
    given = {
        "model.path": folder / "bert",
        "model.task": "text-classification",
        "data.train": train,
        "data.validation": validation,
        "train.steps": 4,
        "train.batch_size": 8,
        "train.device": "cpu",
        "eval.latency": "false",
        "teacher": folder / "bert",
        "output.path": folder / "out",
    }
    sets = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    assert main(["validate", str(config), *sets]) == 2
    assert "cook convert CONFIG" in capsys.readouterr().err
    recipe = folder / "recipe.yaml"
    assert main(["convert", str(config), "-o", str(recipe)]) == 0
    for verb in ("validate", "plan", "run"):
        assert main([verb, str(recipe), *sets]) == 0, capsys.readouterr().err
    report = json.loads((folder / "out" / "report.json").read_text())
    logits, hidden, pruned, _ = report["passes"]
    assert (logits["name"], hidden["name"]) == ("distill.logits", "distill.hidden")
    assert pruned["facts"]["pattern"] == "2:4"
    assert pruned["facts"]["sparsity"] >= 0.5
    assert (folder / "out" / "recipe.source.yaml").read_text() == recipe.read_text()
    assert load_recipe(folder / "out" / "recipe.yaml").passes[2].options.pattern == "2:4"
