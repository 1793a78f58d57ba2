"""The Recipe: what the user asked for, immutable, checked as a whole, every default written out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, TypeVar

from cook.errors import CookError
from cook.options import build
from cook.passes import declared
from cook.recipe import bmcook, override, paths
from cook.recipe.schema.build import problems, schema
from cook.recipe.schema.rules import names, uses
from cook.recipe.schema.shape import fill, normal
from cook.recipe.section import Section, thaw
from cook.recipe.text.nodes import dump
from cook.recipe.text.parse import Document, kind_of, raise_all, read_text, scan
from cook.recipe.text.place import Marks, Path, spell, split, where
from cook.recipe.text.values import plain
from cook.sections import (
    DataSection,
    EvalSection,
    ModelSection,
    OutputSection,
    StudentSection,
    TeacherSection,
    TrainSection,
)

T = TypeVar("T")

EMPTY = "passes is empty: nothing is compressed"
"""What is said of a recipe that has the key and no pass under it; one without the key only trains."""


@dataclass(frozen=True)
class PassSpec:
    """One item of `passes`.

    Attributes:
        name: of the registered pass.
        options: with every default filled in.
        id: unique in the recipe: the name, with `#2` for its second use.
        where: its place, for errors.
    """

    name: str
    options: Section
    id: str
    where: str


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        value: all of it, defaults filled in, local paths absolute.
        text: as written.
        name: the file's name, or `<dict>`.
        marks: the places of its values in the text.
        folder: what its relative paths were relative to.
        overrides: what was changed in it since it was written, as after `--set`.
        notes: lines for people about what is right and may still not be what was meant.
    """

    value: Section
    text: str = field(compare=False)
    name: str = field(compare=False)
    marks: Marks = field(compare=False, repr=False, hash=False)
    folder: FilePath = field(compare=False)
    overrides: tuple[str, ...] = field(compare=False, default=())
    notes: tuple[str, ...] = field(compare=False, default=())

    def has(self, section: str) -> bool:
        """Whether the recipe has a section: one for a model in memory may leave out `model` and `output`."""
        return self.value.get(section) is not None

    @cached_property
    def model(self) -> ModelSection:
        """Names nothing where the recipe has no model."""
        return self._section("model", ModelSection) or ModelSection()

    @cached_property
    def student(self) -> StudentSection | None:
        return self._section("student", StudentSection)

    @cached_property
    def teachers(self) -> tuple[TeacherSection, ...]:
        """The teachers, however many."""
        given = self.value.get("teacher")
        several = () if given is None else given if isinstance(given, tuple) else (given,)
        return tuple(build(TeacherSection, each) for each in several)

    @property
    def teacher(self) -> TeacherSection | tuple[TeacherSection, ...] | None:
        """The only teacher, or all of several."""
        return self.teachers if len(self.teachers) > 1 else next(iter(self.teachers), None)

    @cached_property
    def data(self) -> DataSection | None:
        return self._section("data", DataSection)

    @cached_property
    def train(self) -> TrainSection | None:
        return self._section("train", TrainSection)

    @cached_property
    def eval(self) -> EvalSection:
        return build(EvalSection, self.value["eval"])

    @cached_property
    def output(self) -> OutputSection:
        """Raises CookError where the recipe has no output."""
        found = self._section("output", OutputSection)
        if found is None:
            raise CookError(
                "the recipe has no output section", where=self.name, hint="add output: {path: ...}"
            )
        return found

    def _section(self, name: str, kind: type[T]) -> T | None:
        return None if self.value.get(name) is None else build(kind, self.value[name])

    @cached_property
    def passes(self) -> tuple[PassSpec, ...]:
        """The passes in the order of the recipe."""
        return tuple(
            PassSpec(name, self.value["passes"][path[1]][name], id, self.where(*path))
            for path, name, id in uses(thaw(self.value["passes"]))
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the recipe asks for, however it was written; `output` does not count."""
        return hashlib.sha256(_canonical(_asked(self.value)).encode()).hexdigest()

    def where(self, *path: str | int) -> str:
        """The place of a value, for errors: `recipe.yaml:3:11: train.epochs`."""
        return where(self.marks, self.name, self._path(path))

    def _path(self, path: Path) -> Path:
        try:
            return override.locate(thaw(self.value), path, self.name)
        except CookError:  # a place around it will do
            return path

    def error(self, place: str, message: str, hint: str | None = None) -> CookError:
        """An error about a value of the recipe.

        Args:
            place: as people write it: `data.train`, `passes[0].temperature`.
        """
        return CookError(message, where=self.where(*(split(place) or (place,))), hint=hint)

    def to_yaml(self, folder: str | os.PathLike[str] | None = None) -> str:
        """The whole recipe as YAML, defaults written out; reading it gives the same digest.

        Args:
            folder: where it will be kept; local paths become relative to it. Default: absolute.
        """
        value = thaw(self.value)
        if folder is not None:
            whole = schema(declared(names(value)), partial=True)
            value = paths.relative(value, whole, FilePath(folder).absolute())
        return dump(value)

    def replace(self, *, without: int | None = None, **sections: object) -> Recipe:
        """This recipe with some sections changed, checked as one that is read; the others keep their places.

        Args:
            without: the position of a pass to leave out.
            sections: by name, None to leave a section out, a mapping of the keys to change in it, or for
                `passes` the whole list.

        Raises:
            CookError: the result is not valid; RecipeErrors for several mistakes.
        """
        value = thaw(self.value)
        places: Marks = self.marks
        for name, changes in sections.items():
            if changes is None:
                value.pop(name, None)
            elif isinstance(changes, Mapping):
                value[name] = {**(value.get(name) or {}), **thaw(changes)}
            else:
                value[name] = thaw(changes)
            keys = [(name, key) for key in changes] if isinstance(changes, Mapping) else [(name,)]
            places = {path: mark for path, mark in places.items() if not _under(path, keys)}
        if without is not None:
            value, places = override.without_passes(value, places, [without])
        partial = not ("model" in value and "output" in value)
        document = Document(value, places, self.name, self.text)
        return load_document(document, self.folder, partial=partial, before=self)

    def difference(self, other: Recipe) -> list[str]:
        """What the other recipe asks for instead: `train.epochs: 3 -> 4`; `output` left out."""
        before, after = dict(_flat(_asked(self.value))), dict(_flat(_asked(other.value)))
        return [
            f"{spell(path)}: {_said(before, path)} -> {_said(after, path)}"
            for path in [*before, *(path for path in after if path not in before)]
            if _said(before, path) != _said(after, path)
        ]


def _under(path: Path, keys: Sequence[Path]) -> bool:
    """Whether a path is one of these, or lies in one."""
    return any(path[: len(key)] == key for key in keys)


def _asked(value: Section) -> dict[str, Any]:
    return {key: thaw(item) for key, item in value.items() if key != "output"}


def _canonical(value: Any) -> str:
    def number(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: number(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [number(inner) for inner in item]
        return int(item) if isinstance(item, float) and item.is_integer() else item

    return json.dumps(number(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _flat(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    inner: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        inner = enumerate(value)
    entries = list(inner)
    if not entries:
        yield path, value
    for key, item in entries:
        yield from _flat(item, (*path, key))


def _said(values: dict[Path, Any], path: Path) -> str:
    return _canonical(values[path]) if path in values else "absent"


def load_recipe(
    source: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    *,
    partial: bool = False,
) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a YAML or JSON file, a mapping, or a recipe to change by overrides.
        overrides: `train.epochs=1` and the like, as after `--set`.
        partial: permit `version` and `passes` alone; model, data and teacher come from elsewhere.

    Raises:
        CookError: for a mistake; RecipeErrors, with every mistake, for several.
    """
    document, folder = _document(source)
    before = source if isinstance(source, Recipe) else None
    return load_document(document, folder, overrides, partial=partial, before=before)


def load_document(
    document: Document,
    folder: FilePath,
    overrides: Iterable[str] = (),
    *,
    partial: bool = False,
    before: Recipe | None = None,
) -> Recipe:
    """The recipe that a document holds.

    Args:
        document: from a file or a mapping.
        folder: what relative paths are relative to.
        overrides, partial: as in `load_recipe`.
        before: the recipe that the document was taken from, if it was.

    Raises:
        CookError: for a mistake; RecipeErrors, with every mistake, for several.
    """
    overrides = list(overrides)
    value, marks = normal(document.value), document.marks
    value, marks = override.apply(value, marks, overrides)
    value = normal(value)
    passes = declared(names(value))
    whole = schema(passes, partial=True)
    wrong = problems(value, marks, document.name, passes, partial=partial, known=document.problems)
    if wrong and bmcook.is_bmcook(document.value):
        hint = "cook convert CONFIG -o recipe.yaml writes the recipe that asks for the same"
        raise CookError("this is a config of BMCook, not a recipe", where=document.name, hint=hint)
    value, missing = paths.resolve(value, whole, marks, document.name, folder)
    missing = [item for item in missing if not any(item[0][: len(path)] == path for path, _ in wrong)]
    raise_all(wrong + missing)
    value = fill(whole, value)
    if not partial:
        raise_all(list(_splits(value, marks, document.name)))
    # A Recipe has `passes` written out, whether it was asked for or not.
    noted = before.notes if before is not None else (EMPTY,) if "passes" in document.value else ()
    return Recipe(
        Section(value),
        document.text,
        document.name,
        marks,
        folder,
        overrides=(*(before.overrides if before is not None else ()), *overrides),
        notes=() if value["passes"] else noted,
    )


def _document(source: Any) -> tuple[Document, FilePath]:
    if isinstance(source, Recipe):
        return Document(thaw(source.value), source.marks, source.name, source.text), source.folder
    if isinstance(source, Mapping):
        value = plain(source, "<dict>")
        return Document(value, {}, "<dict>", dump(value)), FilePath.cwd()
    if not isinstance(source, (str, os.PathLike)):
        raise CookError(f"expected a recipe's path, a mapping or a Recipe, found a {type(source).__name__}")
    path = FilePath(source)
    return scan(read_text(path), path.name, kind_of(path)), path.absolute().parent


def _splits(value: dict[str, Any], marks: Marks, name: str) -> Iterator[tuple[Path, CookError]]:
    """Without a data set, train and validation have to be files."""
    data = value.get("data")
    if data is None or data["path"] is not None:
        return
    cut = isinstance(data["validation"], dict)  # out of train
    for key in ("train",) if cut else ("train", "validation") if "train" in value else ("validation",):
        files = data[key] if isinstance(data[key], list) else [data[key]]
        if not all(paths.is_local(file) for file in files):
            message = f"found {data[key]!r}, which is no file, and data.path names no data set"
            path: Path = ("data", key)
            hint = "give data.path (hub id, folder or file), or a file here"
            yield path, CookError(message, where=where(marks, name, path), hint=hint)
