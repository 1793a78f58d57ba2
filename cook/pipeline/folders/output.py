"""The output folder and the work folder beside it: what is there already, and what a resume continues."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cook.errors import CookError, Interrupted
from cook.model.hub.folder import check_free
from cook.recipe import Recipe, load_recipe, thaw
from cook.report import Report
from cook.say import Say, silent
from cook.train import checkpoint

LOGS = "logs"
"""Where a tracker writes: in the work folder while the run lasts, then in the output."""

LOCK = "lock"
"""A file in the work folder, locked while a run lasts; the lock goes with a process that is killed."""


def work_folder(output: Path) -> Path:
    """Where a run keeps its checkpoints: a hidden folder beside the output, gone when the run is done."""
    return output.parent / f".{output.name}.cook"


def finished(recipe: Recipe) -> Report | None:
    """The report of a finished run of this very recipe in its output folder, or None."""
    file = Path(recipe.output.path) / "report.json"
    if not file.is_file():
        return None
    report = Report.read(file)
    return report if recipe.digest in (report.recipe.get("digest"), _digest_today(file.parent)) else None


def _digest_today(folder: Path) -> str | None:
    """The digest of the recipe kept in an output folder, as this version of cook computes it.

    A digest covers the defaults, so a version that adds an option gives the same recipe another digest.
    """
    try:
        return load_recipe(folder / "recipe.yaml").digest
    except CookError:
        return None


def waits(recipe: Recipe) -> bool:
    """Whether an interrupted run left checkpoints."""
    folder = work_folder(Path(recipe.output.path)) / "checkpoints"
    return folder.is_dir() and any(folder.iterdir())


def check(recipe: Recipe, *, force: bool = True) -> None:
    """Raise CookError for an output that cannot be written.

    Args:
        force: whether a finished output that is there may be replaced.
    """
    output = Path(recipe.output.path)
    try:
        check_free(output, force=force)
    except CookError as error:
        raise recipe.error("output.path", f"{output}: {error.message}", error.hint) from error
    except OSError as error:  # such as a name that no disk takes
        raise recipe.error("output.path", f"{output} cannot be written: {error.strerror}") from error
    above = next(folder for folder in output.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise recipe.error("output.path", f"no folder can be made in {above}")


@contextmanager
def guard(recipe: Recipe, *, resume: bool, force: bool, say: Say) -> Iterator[Path]:
    """Refuse to write over anything without being told to; gives the folder for checkpoints.

    The work folder is this run's alone inside of the `with`.

    Raises:
        CookError: the output is taken or cannot be written, another run is writing it, or an interrupted
            run waits to be resumed and nothing was said of it.
    """
    check(recipe, force=force)
    output = Path(recipe.output.path)
    work = work_folder(output)
    with _alone(work, recipe):
        folder = work / "checkpoints"
        waiting = None if resume else checkpoint.newest(folder, say)
        if waiting is not None and not force:
            step = checkpoint.step_of(waiting)
            raise CookError(
                f"an interrupted run waits at step {step}",
                where=str(folder),
                hint="give --resume to go on from there, or --force to start afresh",
            )
        if not resume and _first():
            for path in work.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path, ignore_errors=True)
        yield folder


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C into words on how to go on, where a checkpoint is there to go on from.

    The loop does so itself while it trains; this is for what comes before and after: preparing, finishing,
    saving, measuring.

    Args:
        folder: of the checkpoints.

    Raises:
        Interrupted: in the place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        found = checkpoint.newest(folder, silent)
        if found is None:
            raise
        message = f"stopped; the checkpoint of step {checkpoint.step_of(found)} is kept"
        raise Interrupted(message, hint="run again with --resume to go on from there") from error


def _first() -> bool:
    """Whether this is the first of the processes of one run, or its only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _alone(work: Path, recipe: Recipe) -> Iterator[None]:
    """Hold the lock of a work folder, which is made if need be and goes again if it stays empty."""
    if not _first():
        yield
        return
    lock = work / LOCK
    try:
        work.mkdir(parents=True, exist_ok=True)
        opened = lock.open("a")  # never cuts off a file that a link may lead to
    except OSError as error:
        message = f"{work} cannot be written: {error.strerror}"
        raise recipe.error("output.path", message, "choose a folder on a disk that can be written") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "wait for it to end, or choose another path"
            raise recipe.error("output.path", f"another run is writing {recipe.output.path}", hint) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise  # those three are file systems without locks: better unguarded than not at all
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if work.exists() and not any(work.iterdir()):
                work.rmdir()


def restore(
    folder: Path, recipe: Recipe, processes: int, say: Say, inputs: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """The newest whole checkpoint of this recipe; None, and said, when there is none.

    Args:
        inputs: as in `identity`.

    Raises:
        CookError: it belongs to another recipe, other inputs or another number of processes; says the
            difference.
    """
    path = checkpoint.newest(folder, say)
    if path is None:
        say("there is nothing to resume: starting afresh")
        return None
    state = checkpoint.load(path)
    before = state["run"]["identity"]
    if before["digest"] != recipe.digest:
        # Read again: the digest of the same recipe changes when a version of cook adds an option.
        then = load_recipe(json.loads(before["recipe"]))
        if then.digest != recipe.digest:
            listed = "\n  ".join(then.difference(recipe))
            raise CookError(
                f"the recipe has changed since that checkpoint:\n  {listed}",
                where=str(path),
                hint="put the recipe back, or give --force without --resume to start afresh",
            )
    if before["processes"] != processes:
        raise CookError(
            f"the run had {before['processes']} processes, and now there are {processes}",
            where=str(path),
            hint="start as many as before: seeds and shares of the data depend on it",
        )
    was = before.get("inputs", {})
    if changed := [name for name, found in (inputs or {}).items() if was.get(name, found) != found]:
        raise CookError(
            f"{' and '.join(changed)} are others than at that checkpoint",
            where=str(path),
            hint="put them back, or give --force without --resume to start afresh",
        )
    say(f"resuming after step {state['run']['done']}")
    return state


def identity(recipe: Recipe, processes: int, inputs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed.

    Args:
        inputs: hashes of what the recipe names and does not hold, by what it is called in words.
    """
    told = {"digest": recipe.digest, "recipe": json.dumps(thaw(recipe.value)), "processes": processes}
    return {**told, "inputs": dict(inputs or {})}
