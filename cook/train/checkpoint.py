"""Checkpoints that are safe against a kill at any moment, a full disk, and later damage.

    checkpoints/
        step-120/            complete: manifest.json, and a torch file for each part of the state
        step-150.tmp/        being written, or left by a kill: never read, removed by the next save
        step-90.corrupt/     did not match its manifest: renamed by `newest`, kept for inspection

A checkpoint is written to a temporary folder, hashed into a manifest, flushed to disk, and only then
renamed: a folder called `step-N` is complete, or its manifest shows that it is not. One process writes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from cook.disk import sync
from cook.errors import RunError
from cook.train import manifest


def save(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write `state` as the checkpoint of `step`, then remove the older ones beyond `keep`.

    Args:
        folder: the checkpoints of one run; created if absent.
        step: number of completed optimizer steps.
        state: name of a part (letters, digits, `-`, `_`) -> nested mappings, lists and tuples of tensors,
            numbers, strings, booleans and None. Each part is written to one file.
        keep: number of checkpoints to keep, including this one; at least 1.

    Returns:
        The folder `step-N`. An existing one is replaced.

    Raises:
        RunError: writing failed, for example on a full disk; earlier checkpoints are intact.
        TypeError: `state` contains values that `load` would refuse to read.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, it must be at least 1")
    parts = {_file_name(name): _plain(value, name) for name, value in state.items()}
    folder = Path(folder)
    target, temporary = folder / f"step-{step}", folder / f"step-{step}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _recover(folder)
        _sweep(folder)
        temporary.mkdir()
        files = {name: manifest.write_part(temporary / name, value) for name, value in parts.items()}
        manifest.write(temporary, step, files)
        sync(temporary)
        if target.exists():
            target.rename(_old(target))  # a kill between these two lines is repaired by `_recover`
        temporary.rename(target)
        sync(folder)
        for _, path in _complete(folder)[keep:]:
            path.rename(path.with_name(f"{path.name}.tmp"))  # atomic, unlike removal
        _sweep(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # leftovers are removed by the next save
        raise _cannot_write(folder, step, error) from error
    return target


def newest(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest complete checkpoint in `folder`, or None.

    Every byte of a checkpoint is verified against its manifest. One that differs is renamed `step-N.corrupt`,
    `say` is called with the reason, and the previous one is tried.

    Raises:
        RunError: the folder cannot be read, or renaming in it failed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    try:
        _recover(folder)
        for step, path in _complete(folder):
            problem = manifest.problem(path, step)
            if problem is None:
                return path
            aside = path.with_name(f"{path.name}.corrupt")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            say(f"checkpoint {path} is corrupt ({problem}): moved to {aside.name}")
    except OSError as error:
        message = f"cannot look for a checkpoint: {error.strerror or error}"
        raise RunError(message, where=str(folder)) from error
    return None


def load(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Load the state passed to `save`, with mappings as dicts and tensors on `map_location`.

    Args:
        path: a folder returned by `newest` or `save`. Only tensors and plain values are read from it.

    Raises:
        RunError: it cannot be read.
    """
    path = Path(path)
    try:
        names = [Path(name) for name in manifest.read(path)["files"]]
        return {
            name.stem: torch.load(path / name, map_location=map_location, weights_only=True) for name in names
        }
    except (OSError, ValueError, EOFError, RuntimeError, UnpicklingError) as error:
        hint = "remove this folder to resume from the checkpoint before it"
        raise RunError(f"cannot read the checkpoint: {error}", where=str(path), hint=hint) from error


def step_of(path: Path) -> int:
    """The step of a checkpoint folder, from its name."""
    return int(path.name.removeprefix("step-"))


def _complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the completely written checkpoints, newest first."""
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(((step_of(path), path) for path in found), reverse=True)


def _old(target: Path) -> Path:
    return target.with_name(f"{target.name}.old")


def _recover(folder: Path) -> None:
    """Restore a checkpoint whose replacement by another of the same step was interrupted by a kill."""
    for old in folder.glob("step-*.old"):
        if not old.with_suffix("").exists():
            old.rename(old.with_suffix(""))


def _sweep(folder: Path) -> None:
    """Remove leftovers of interrupted saves and replaced checkpoints."""
    for pattern in ("step-*.tmp", "step-*.old"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def _file_name(part: str) -> str:
    if not re.fullmatch(r"[\w-]+", part, re.ASCII):
        raise ValueError(f"{part!r} cannot name a part of a checkpoint: letters, digits, '-' and '_' can")
    return f"{part}.pt"


def _plain(value: Any, where: str) -> Any:
    """Convert `value` to dicts, lists, tuples, tensors and Python scalars: the types that `load` accepts."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):  # a subclass, such as numpy's float64, would be pickled as itself
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint takes tensors and plain values")


def _cannot_write(folder: Path, step: int, error: OSError) -> RunError:
    complete = _complete(folder) if folder.is_dir() else []
    kept = f"{complete[0][1].name} is intact" if complete else "there is none before it"
    return RunError(
        f"cannot write the checkpoint of step {step}: {error.strerror or error}; {kept}",
        where=str(folder),
        hint="free some space or choose another output.path, then run again with --resume",
    )
