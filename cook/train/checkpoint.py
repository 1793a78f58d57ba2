"""Checkpoints that survive a kill at any moment, a full disk, and damage while they lie there.

    checkpoints/
        step-120/            complete: manifest.json, and a torch file for each part of the state
        step-150.tmp/        being written, or what a kill left of it: never read, swept by the next save
        step-90.corrupt/     did not match its manifest: moved aside by `newest`, kept for a look

A checkpoint is written beside its place, hashed into a manifest, forced to the disk, and only then
renamed: a folder called `step-N` is whole, or it is found out by its manifest. One process writes.
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
    """Write `state` as the checkpoint of `step`; the older ones beyond `keep` go afterwards.

    Args:
        folder: holds the checkpoints of one run; made when absent.
        step: how many optimizer steps are done.
        state: a part's name (letters, digits, `-`, `_`) -> nested mappings, lists and tuples of tensors,
            numbers, strings, booleans and None. Each part becomes one file.
        keep: how many checkpoints stay, this one included; at least 1.

    Returns:
        The folder `step-N`. One that stood there already is replaced.

    Raises:
        RunError: when the disk is full or refuses; what was saved before is intact.
        TypeError: when `state` holds what `load` would refuse to read.
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
            target.rename(_old(target))  # if we die between these two lines, `_recover` undoes this one
        temporary.rename(target)
        sync(folder)
        for _, path in _complete(folder)[keep:]:
            path.rename(path.with_name(f"{path.name}.tmp"))  # removing is not atomic, this is
        _sweep(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # what stays is swept by the next save
        raise _cannot_write(folder, step, error) from error
    return target


def newest(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint in `folder` that is whole, or None.

    Each one is compared with its manifest, every byte of it. One that differs is renamed `step-N.corrupt`,
    `say` is told what is wrong with it, and the one before is tried.

    Raises:
        RunError: when the folder may not be read or renamed in.
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
    """The state that `save` was given, mappings as dicts and tensors on `map_location`.

    Args:
        path: a folder that `newest` or `save` returned. Only tensors and plain values are read from it.

    Raises:
        RunError: when it cannot be read.
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
    """The step that a checkpoint folder was saved at, read from its name."""
    return int(path.name.removeprefix("step-"))


def _complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints that were renamed into place, newest first."""
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(((step_of(path), path) for path in found), reverse=True)


def _old(target: Path) -> Path:
    return target.with_name(f"{target.name}.old")


def _recover(folder: Path) -> None:
    """Put back a checkpoint that a kill caught while it was being replaced by another of its step."""
    for old in folder.glob("step-*.old"):
        if not old.with_suffix("").exists():
            old.rename(old.with_suffix(""))


def _sweep(folder: Path) -> None:
    """Remove what an interrupted save left, and what was replaced."""
    for pattern in ("step-*.tmp", "step-*.old"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def _file_name(part: str) -> str:
    if not re.fullmatch(r"[\w-]+", part, re.ASCII):
        raise ValueError(f"{part!r} cannot name a part of a checkpoint: letters, digits, '-' and '_' can")
    return f"{part}.pt"


def _plain(value: Any, where: str) -> Any:
    """`value` in dicts, lists, tuples, tensors and Python's own scalars: what `load` agrees to read."""
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
