"""What earlier versions wrote goes on working: model folders, checkpoints and outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import cook  # registers the quantizer that rebuilds the folders
from cook.errors import CookError
from cook.pipeline.folders import output
from cook.recipe import load_recipe
from cook.train import checkpoint
from tests.helpers import tiny
from tests.test_pipeline import silent, workspace, write

__all__ = ["workspace"]

FOLDERS = Path(__file__).parent / "fixtures" / "folders-0.1.0"
"""Tiny models compressed by version 0.1.0, each with the logits that it gave in `expected.st`: integers of
8 bits after head pruning, low-rank factors in 4 bits, uneven heads and neurons, a factorised embedding with
shared layers, and 6-bit weights in a model of fewer layers."""
RELATIVE = {"bert-integers": 1e-4, "gpt2-factors-int4": 1e-4, "vit-layers-static": 1e-4}
"""Integer products may be summed in another order on another machine; floats too, in the last digits."""


@pytest.mark.parametrize("folder", sorted(FOLDERS.iterdir()), ids=lambda path: path.name)
def test_folders_of_earlier_versions_give_the_same_outputs(folder: Path) -> None:
    assert cook.__version__
    family = folder.name.partition("-")[0]
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    model = auto.from_pretrained(folder)
    batch = {name: value for name, value in tiny.batch(family).items() if name != "labels"}
    with torch.no_grad():
        found = model(**batch).logits
    expected = load_file(folder / "expected.st")["logits"]
    largest = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= RELATIVE.get(folder.name, 1e-5) * largest


def test_a_checkpoint_is_resumed_when_only_the_digest_of_its_recipe_is_another_versions(
    workspace: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(write(workspace / "resumed.yaml"))
    identity = output.identity(recipe, 1)
    older = json.loads(identity["recipe"])
    del older["data"]["augment"]  # as if that version had not known the option
    identity |= {"digest": "another version's", "recipe": json.dumps(older)}
    checkpoint.save(tmp_path, 3, {"run": {"identity": identity, "done": 3}})
    state = output.restore(tmp_path, recipe, 1, silent)
    assert state is not None
    assert state["run"]["done"] == 3
    other = load_recipe(recipe, ["train.steps=41"])
    with pytest.raises(CookError, match=r"has changed since that checkpoint:\n  train\.steps: 40 -> 41"):
        output.restore(tmp_path, other, 1, silent)


def test_an_output_is_finished_when_only_its_digest_is_another_versions(workspace: Path) -> None:
    place = workspace / "out" / "known"
    recipe = load_recipe(write(workspace / "known.yaml", train={"steps": 1}))
    cook.run(recipe, say=silent, progress=False)
    report = json.loads((place / "report.json").read_text())
    report["recipe"]["digest"] = "another version's"
    (place / "report.json").write_text(json.dumps(report))
    assert output.finished(recipe) is not None
    assert output.finished(load_recipe(recipe, ["train.steps=2"])) is None
    (place / "recipe.yaml").unlink()
    assert output.finished(recipe) is None


def test_modules_that_moved_are_found_by_their_old_names() -> None:
    import cook.train
    from cook.data.files import tables

    with pytest.warns(DeprecationWarning, match=r"cook\.train\.files is cook\.data\.files\.tables now"):
        assert cook.train.files is tables
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cook.train.nothing
