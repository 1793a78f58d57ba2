"""Outputs that would destroy something: what a run reads, another's model, another run's work."""

from __future__ import annotations

import errno
import operator
import os
import signal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cook.errors import CookError, Interrupted
from cook.pipeline import plan, run
from cook.pipeline.folders import output
from cook.pipeline.folders.output import work_folder
from cook.recipe import load_recipe
from tests.helpers import tiny
from tests.test_pipeline import silent, workspace, write

__all__ = ["workspace"]


def test_an_output_never_replaces_what_the_run_reads(workspace: Path, tmp_path: Path) -> None:
    model, data = tiny.folder(tmp_path / "data" / "bert"), tmp_path / "data"
    table = tiny.table(data / "train.tsv", 8)
    tiny.folder(data)  # whatever the folder looks like
    value: dict[str, Any] = {
        "version": 1,
        "model": {"path": str(model), "task": "text-classification"},
        "data": {"train": str(table), "validation": str(workspace / "val.tsv"), "text": "sentence"},
        "train": {"steps": 1},
    }
    (tmp_path / "link").symlink_to(model)
    for place, words in ((model, "is"), (data, "holds"), (tmp_path / "link", "is")):
        recipe = load_recipe({**value, "output": {"path": str(place)}})
        with pytest.raises(CookError, match=rf"output\.path: .* {words} .*, which the run reads"):
            run(recipe, force=True, say=silent, progress=False)
    first = write(workspace / "onto.yaml", output={"path": "out/onto"})
    second = write(
        workspace / "itself.yaml",
        model={"recipe": str(first), "task": "text-classification"},
        output={"path": "out/onto"},
    )
    with pytest.raises(CookError, match="which the run reads"):
        run(second, force=True, say=silent, progress=False)
    assert table.exists()
    assert (model / "model.safetensors").exists()


def test_a_model_that_is_there_is_not_built_over(workspace: Path, tmp_path: Path) -> None:
    own = tiny.folder(tmp_path / "own")
    first = write(workspace / "builds.yaml", output={"path": str(own)})
    model = {"recipe": str(first), "task": "text-classification"}
    with pytest.raises(CookError, match="was not written by cook"):
        run(write(workspace / "rests.yaml", model=model), say=silent, progress=False)
    assert (own / "model.safetensors").exists()


def test_two_runs_do_not_write_one_output(workspace: Path) -> None:
    recipe = load_recipe(write(workspace / "twice.yaml"))
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


@pytest.mark.parametrize("stage", ["deliver", "execute", "environment.describe"])
def test_ctrl_c_after_the_last_step_says_how_to_go_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """While finishing, saving, measuring: a checkpoint of the last step is there."""
    recipe = write(workspace / f"stopped-{stage}.yaml")
    real = operator.attrgetter(stage)(import_module("cook.pipeline.run"))

    def stopped(*args: Any, **named: Any) -> Any:
        done = real(*args, **named) if stage == "execute" else None
        signal.raise_signal(signal.SIGINT)
        return done

    with monkeypatch.context() as patch:
        *home, name = stage.split(".")
        module = import_module("cook.pipeline.run")
        patch.setattr(operator.attrgetter(*home)(module) if home else module, name, stopped)
        with pytest.raises(Interrupted, match=r"the checkpoint of step \d+ is kept") as caught:
            run(recipe, say=silent, progress=False)
    assert "--resume" in str(caught.value.hint)
    assert run(recipe, resume=True, say=silent, progress=False).train is not None


def test_ctrl_c_before_the_first_checkpoint_stays_what_it_is(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(workspace / "stopped-early.yaml")
    monkeypatch.setattr(
        import_module("cook.pipeline.run"), "read_data", lambda *_: signal.raise_signal(signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        run(recipe, say=silent, progress=False)


def test_an_output_that_cannot_be_written_names_its_key(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write(workspace / "unwritable.yaml"))

    def refuse(self: Path, *args: Any, **named: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere, but not to such a disk
    with pytest.raises(CookError, match="Read-only file system") as caught:
        run(recipe, say=silent, progress=False)
    assert str(caught.value.where).endswith(": output.path")


def test_an_output_whose_name_is_too_long_names_its_key(workspace: Path) -> None:
    recipe = write(workspace / "long.yaml", output={"path": str(workspace / ("a" * 300))})
    with pytest.raises(CookError, match="File name too long"):
        plan(load_recipe(recipe))
    (workspace / "a-file").touch()
    taken = write(workspace / "taken.yaml", output={"path": str(workspace / "a-file" / "out")})
    with pytest.raises(CookError, match="no folder can be made"):
        plan(load_recipe(taken))
    with pytest.raises(CookError, match="File name too long") as caught:
        run(recipe, say=silent, progress=False)
    assert str(caught.value.where).endswith(": output.path")


def test_runs_from_before_a_key_was_added_are_still_known(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new key with a default changes every recipe's digest, and nothing that was asked for."""
    module, recipe = import_module("cook.pipeline.run"), load_recipe(write(workspace / "older.yaml"))

    def stopped(*args: Any, **named: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    def older(*args: Any, **named: Any) -> dict[str, Any]:
        return {**real(*args, **named), "digest": "of a recipe with fewer keys"}

    real = output.identity
    with monkeypatch.context() as patch:
        patch.setattr(module, "deliver", stopped)
        patch.setattr(output, "identity", older)
        with pytest.raises(Interrupted):
            run(recipe, say=silent, progress=False)
    changed = load_recipe(recipe, ["train.seed=7"])
    with pytest.raises(CookError, match="the recipe has changed"):
        run(changed, resume=True, say=silent, progress=False)
    said: list[str] = []
    run(recipe, resume=True, say=said.append, progress=False)
    assert "resuming after step 40" in said
    file = Path(recipe.output.path) / "report.json"
    file.write_text(file.read_text().replace(recipe.digest, "of a recipe with fewer keys"))
    assert output.finished(recipe) is not None
    assert output.finished(changed) is None
