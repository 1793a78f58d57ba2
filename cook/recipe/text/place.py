"""Where in a recipe something stands: paths into its value, and their lines and columns.

A path is a tuple of keys and list positions, as in `("passes", 1, "prune.weights", "sparsity")`.
People read and write it as `passes[1].sparsity`: a pass is known by its position there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Mark:
    """The place of a value.

    Attributes:
        line, column: counted from 1; 0 when the value stands in no text.
        origin: what gave the value when it was not the text: `--set train.epochs=1`.
        key: the place of the key that the value stands under.
    """

    line: int = 0
    column: int = 0
    origin: str | None = None
    key: Mark | None = None


Marks = Mapping[Path, Mark]


def spell(path: Path) -> str:
    """A path as people write it.

    >>> spell(("passes", 1, "prune.weights", "sparsity"))
    'passes[1].sparsity'
    """
    text = ""
    for depth, part in enumerate(path):
        if isinstance(part, int):
            text += f"[{part}]"
        elif depth != 2 or path[0] != "passes":
            text += f".{part}" if text else part
    return text


_PARTS = re.compile(r"(?:^|\.)([^.\[\]=]+)|\[([^\[\]]+)\]")


def split(target: str) -> Path | None:
    """The parts of what `spell` wrote, or None when it is no such text.

    >>> split("passes[prune.weights].sparsity")
    ('passes', 'prune.weights', 'sparsity')
    """
    parts: list[str | int] = []
    end = 0
    while end < len(target):
        found = _PARTS.match(target, end)
        if found is None:
            return None
        name, index = found.groups()
        parts.append(name or (int(index) if re.fullmatch("[0-9]{1,6}", index) else index))
        end = found.end()
    return tuple(parts) or None


def mark_of(marks: Marks, path: Path) -> Mark | None:
    """The mark of a path; of the override that set something in it; or of the nearest thing around it."""
    if path not in marks:
        inside = [mark for other, mark in marks.items() if other[: len(path)] == path and mark.origin]
        if inside:
            return inside[0]
    for size in range(len(path), -1, -1):
        if mark := marks.get(path[:size]):
            whole = size == len(path)
            return mark if whole or mark.key is None else mark.key
    return None


def where(marks: Marks, name: str, path: Path, *, key: bool = False) -> str:
    """The place of a path for an error: `recipe.yaml:3:11: train.epochs`.

    Args:
        key: point at the key instead of at its value.
    """
    mark = mark_of(marks, path)
    if mark and key and mark.key:
        mark = mark.key
    if mark is None:
        place = name
    elif mark.origin:
        place = mark.origin
    else:
        place = f"{name}:{mark.line}:{mark.column}"
    spelled = spell(path)
    said = mark is not None and mark.origin is not None and mark.origin.startswith(f"--set {spelled}=")
    return place if said or not spelled else f"{place}: {spelled}"
