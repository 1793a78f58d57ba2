"""Recipe text -> plain values with the line and column of each.

Reads a file or a text into a `Document`, and refuses what would be read silently wrong or would
cost time without bound: duplicate keys, unknown tags, keys that are no text or whole number, numbers that
are not finite, aliases that multiply or contain themselves, and files over 1 MB.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from cook.errors import CookError, RecipeErrors, nearest
from cook.recipe.text.nodes import MAX_DEPTH, MAX_NODES, TAG, compose, too_large
from cook.recipe.text.place import Mark, Path, where
from cook.recipe.text.values import SCALARS

MAX_BYTES = 1_000_000

Problems = list[tuple[Path, CookError]]
"""Mistakes with the path each is about, so that one mistake is not told twice."""


@dataclass(frozen=True)
class Document:
    """What a text says.

    Attributes:
        value: dicts, lists, texts, numbers, booleans and None.
        marks: the place of every value (and in `.key` that of its key), by path.
        name: what errors call the text.
        text: as written.
        problems: mistakes that left a value readable around them.
    """

    value: Any
    marks: Mapping[Path, Mark]
    name: str
    text: str = ""
    problems: Problems = field(default_factory=list)


def raise_all(problems: Problems) -> None:
    """Raise the mistakes in the order of the text, a single one as it is; do nothing for none."""
    unique = list({str(error): error for _, error in problems}.values())
    if len(unique) == 1:
        raise unique[0]
    if unique:
        raise RecipeErrors(unique)


def read(path: str | os.PathLike[str]) -> Document:
    """The document in a file, JSON if it is called `.json` and YAML otherwise.

    Raises:
        CookError: when the file cannot be read or holds a mistake; RecipeErrors for several.
    """
    return parse(read_text(path), FilePath(path).name, kind_of(path))


def kind_of(path: str | os.PathLike[str]) -> str:
    """`json` or `yaml`, by the suffix of a file."""
    return "json" if FilePath(path).suffix.lower() == ".json" else "yaml"


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a recipe file.

    Raises:
        CookError: no such file, a folder, unreadable, over 1 MB, or not UTF-8.
    """
    place = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        file_path = FilePath(path)
        raise CookError("there is no such file", where=place, hint=_neighbour(file_path)) from None
    except IsADirectoryError:
        raise CookError("this is a folder; expected a recipe file", where=place) from None
    except (OSError, ValueError) as error:
        raise CookError(f"the recipe cannot be read: {error}", where=place) from None
    if len(data) > MAX_BYTES:
        raise CookError(f"the file is over {MAX_BYTES:,} bytes, which no recipe needs", where=place)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"found the byte 0x{data[error.start]:02x}, which is not UTF-8"
        raise CookError(message, where=f"{place}:{line}:{column}", hint="save the file as UTF-8") from None


def _neighbour(path: FilePath) -> str | None:
    try:
        return nearest(path.name, os.listdir(path.parent))
    except (OSError, ValueError):
        return f"there is no folder {str(path.parent)!r} either"


def parse(text: str, name: str, kind: str = "yaml") -> Document:
    """The document in a text.

    Args:
        name: what errors call the text.
        kind: `yaml` or `json`.

    Raises:
        CookError: when the text holds a mistake; RecipeErrors for several.
    """
    document = scan(text, name, kind)
    raise_all(document.problems)
    return document


def scan(text: str, name: str, kind: str = "yaml") -> Document:
    """Like `parse`, but mistakes that the rest can be read around are in `.problems`.

    Raises:
        CookError: when nothing can be read: a syntax error, an empty text, a limit passed.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES:
        raise CookError(f"the text is over {MAX_BYTES:,} characters, which no recipe needs", where=name)
    root = compose(text, name, kind)
    if root is None:
        raise CookError("the recipe is empty", where=f"{name}:1:1", hint="begin it with 'version: 1'")
    walk = _Walk(name)
    value = walk.value(root, ())
    return Document(value, walk.marks, name, text, walk.problems)


class _Walk:
    """One walk over a node graph, aliases expanded."""

    def __init__(self, name: str):
        self.name, self.count = name, 0
        self.marks: dict[Path, Mark] = {}
        self.problems: Problems = []
        self.around: list[yaml.Node] = []

    def problem(self, path: Path, node: yaml.Node, message: str, hint: str | None = None) -> None:
        place = where({path: _mark(node)}, self.name, path)
        self.problems.append((path, CookError(message, where=place, hint=hint)))

    def value(self, node: yaml.Node, path: Path, key: yaml.Node | None = None) -> Any:
        self.count += 1
        if self.count > MAX_NODES or len(path) > MAX_DEPTH:
            place = where({(): _mark(key or node)}, self.name, ())
            raise CookError(too_large(self.count), where=place)
        self.marks[path] = _mark(node, key)
        if any(node is outer for outer in self.around):
            self.problem(path, key or node, "an alias stands inside of what it repeats")
            return None
        self.around.append(node)
        try:
            return self.content(node, path)
        finally:
            self.around.pop()

    def content(self, node: yaml.Node, path: Path) -> Any:
        tag = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and tag in SCALARS:
            try:
                return SCALARS[tag](node.value)
            except ValueError as error:
                self.problem(path, node, str(error))
                return None
        shown = node.tag if tag == node.tag else f"!!{tag}"
        self.problem(path, node, f"found the tag {shown[:60]!r}, which no recipe needs", "remove the tag")
        return None

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode) or not (key.tag == TAG + "str" or _number(key)):
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                hint = "put the key in quotes" if isinstance(key, yaml.ScalarNode) else None
                self.problem(path, key, f"found {shown} as a key; expected a text", hint)
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                message = f"the key {key.value!r} stands twice, on line {lines[key.value]} and on line {line}"
                self.problem((*path, key.value), key, message, "remove one of them")
                continue
            try:
                SCALARS["str"](key.value)
            except ValueError as error:
                self.problem(path, key, str(error))
                continue
            lines[key.value] = line
            result[key.value] = self.value(item, (*path, key.value), key)
        return result


def _number(key: yaml.ScalarNode) -> bool:
    """Whether a key is a whole number, as layers have; it stands for its text, as in JSON."""
    return key.tag == TAG + "int" and re.fullmatch("0|-?[1-9][0-9]{0,9}", key.value) is not None


def _mark(node: yaml.Node, key: yaml.Node | None = None) -> Mark:
    start = node.start_mark
    return Mark(start.line + 1, start.column + 1, key=_mark(key) if key else None)
