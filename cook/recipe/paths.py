"""Local paths in a recipe: relative to it when read, absolute in its value, relative again when written."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from cook.data.files.formats import DATA_SUFFIXES
from cook.errors import CookError, nearest
from cook.options import Schema
from cook.recipe.schema.shape import walk
from cook.recipe.text.parse import Problems
from cook.recipe.text.place import Marks, Path, mark_of, where

_LOOKS_LOCAL = re.compile(r"[/~]|\.\.?(?:/|\Z)")


def is_local(value: Any) -> bool:
    """Whether a value of a resolved recipe is a local path, and not a hub id or the name of a split."""
    return isinstance(value, str) and os.path.isabs(value)


def resolve(value: Any, whole: Schema, marks: Marks, name: str, folder: FilePath) -> tuple[Any, Problems]:
    """A copy of a checked value (defaults not filled in) with its local paths absolute.

    Args:
        folder: the recipe's; what `--set` gave is relative to the current directory.
    """
    result = copy.deepcopy(value)
    problems: Problems = []
    for path, kind, text in _places(result, whole):
        mark = mark_of(marks, path)
        base = FilePath.cwd() if mark and mark.origin else folder
        local = os.path.normpath(os.path.join(base, os.path.expanduser(text)))
        bare = not _LOOKS_LOCAL.match(text) and not text.lower().endswith(DATA_SUFFIXES)
        if text == "self" and path[0] == "teacher":
            continue
        exists = os.path.isfile(local) if kind == "file" and bare else os.path.exists(local)
        if kind not in ("output", "recipe") and bare and not exists:
            continue
        if not exists and kind != "output":
            error = CookError(f"there is no {text!r}", where=where(marks, name, path), hint=_near(local))
            problems.append((path, error))
        _put(result, path, local)
    return result, problems


def relative(value: Any, whole: Schema, folder: FilePath) -> Any:
    """A copy of a resolved value with its local paths relative to a folder."""
    result = copy.deepcopy(value)
    for path, _, text in _places(result, whole):
        if is_local(text):
            local = os.path.relpath(text, folder)
            _put(result, path, local if local.startswith("..") else os.path.join(".", local))
    return result


def _places(value: Any, whole: Schema) -> Iterator[tuple[Path, str, str]]:
    found = [
        (path, str(schema.get("x-path-kind", "any")), item)
        for path, schema, item in walk(whole, value)
        if schema.get("x-path") and isinstance(item, str)
    ]
    yield from found


def _put(value: Any, path: Path, new: str) -> None:
    for part in path[:-1]:
        value = value[part]
    value[path[-1]] = new


def _near(local: str) -> str:
    folder, file = os.path.split(local)
    try:
        names = os.listdir(folder)
    except OSError:
        return f"there is no folder {folder}"
    return nearest(file, names) or f"looked in {folder}"
