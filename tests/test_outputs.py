"""Outputs that would destroy something: what a run reads, another's model, another run's work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cook.errors import CookError
from cook.pipeline import output, run
from cook.pipeline.output import work_folder
from cook.recipe import load_recipe
from tests import tiny
from tests.test_pipeline import kitchen, silent, write

__all__ = ["kitchen"]


def test_an_output_never_replaces_what_the_run_reads(kitchen: Path, tmp_path: Path) -> None:
    model, data = tiny.folder(tmp_path / "data" / "bert"), tmp_path / "data"
    table = tiny.table(data / "train.tsv", 8)
    tiny.folder(data)  # whatever the folder looks like
    value: dict[str, Any] = {
        "version": 1,
        "model": {"path": str(model), "task": "text-classification"},
        "data": {"train": str(table), "validation": str(kitchen / "val.tsv"), "text": "sentence"},
        "train": {"steps": 1},
    }
    (tmp_path / "link").symlink_to(model)
    for place, words in ((model, "is"), (data, "holds"), (tmp_path / "link", "is")):
        recipe = load_recipe({**value, "output": {"path": str(place)}})
        with pytest.raises(CookError, match=rf"output\.path: .* {words} .*, which the run reads"):
            run(recipe, force=True, say=silent, progress=False)
    first = write(kitchen / "onto.yaml", output={"path": "out/onto"})
    second = write(
        kitchen / "itself.yaml",
        model={"recipe": str(first), "task": "text-classification"},
        output={"path": "out/onto"},
    )
    with pytest.raises(CookError, match="which the run reads"):
        run(second, force=True, say=silent, progress=False)
    assert table.exists()
    assert (model / "model.safetensors").exists()


def test_a_model_that_is_there_is_not_built_over(kitchen: Path, tmp_path: Path) -> None:
    own = tiny.folder(tmp_path / "own")
    first = write(kitchen / "builds.yaml", output={"path": str(own)})
    model = {"recipe": str(first), "task": "text-classification"}
    with pytest.raises(CookError, match="was not written by cook"):
        run(write(kitchen / "rests.yaml", model=model), say=silent, progress=False)
    assert (own / "model.safetensors").exists()


def test_two_runs_do_not_write_one_output(kitchen: Path) -> None:
    recipe = load_recipe(write(kitchen / "twice.yaml"))
    work = work_folder(Path(recipe.output.path))
    with output.guard(recipe, resume=False, force=False, say=silent) as folder:
        (folder / "step-1.tmp").mkdir(parents=True)
        for options in ({}, {"force": True}, {"resume": True}):
            with pytest.raises(CookError, match="another run is writing"):
                run(recipe, say=silent, progress=False, **options)
        assert (folder / "step-1.tmp").exists()
        (folder / "step-1.tmp").rmdir()
        folder.rmdir()
    assert not work.exists()
