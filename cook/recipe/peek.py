"""What can be known of a recipe's data within a second: files, splits, columns, labels.

`cook validate` ends with it, and `cook run` and `cook plan` begin with it, before anything heavy is
imported. It refuses only what a run would certainly refuse later, and names what it did not look at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cook.data.files.formats import DATA_SUFFIXES, DIGITS, SLICE
from cook.errors import CookError, nearest
from cook.recipe.paths import is_local
from cook.recipe.recipe import Recipe
from cook.recipe.tables import Table, look
from cook.recipe.text.parse import raise_all
from cook.sections import DataSection

SPLITS = ("train", "validation")
HEADS = {
    "text-classification": "ForSequenceClassification",
    "image-classification": "ForImageClassification",
}
"""What the classes of models end in that have a head for a task."""

Found = Iterator[CookError]


def check(recipe: Recipe) -> list[str]:
    """Look at the data that a recipe names.

    Returns:
        Lines that say what was not looked at.

    Raises:
        CookError: a run would refuse the data; RecipeErrors for several mistakes.
    """
    if recipe.data is not None and recipe.train is not None and recipe.has("model"):
        raise_all([((), error) for error in _mistakes(recipe, recipe.data)])
    return [f"not checked: {', '.join(far)}, which must be fetched first"] if (far := _far(recipe)) else []


def _far(recipe: Recipe) -> list[str]:
    """The keys whose values are on the hub."""
    named = [
        ("model.path", recipe.model),
        ("student.path", recipe.student),
        *(("teacher.path", teacher) for teacher in recipe.teachers),
        ("data.path", recipe.data),
    ]
    return [
        f"{key} {section.path!r}"
        for key, section in named
        if section is not None
        and section.path is not None
        and not is_local(section.path)
        and section.path not in ("self", DIGITS)
    ]


def _mistakes(recipe: Recipe, data: DataSection) -> Found:
    tables: dict[str, list[tuple[Path, Table]]] = {}
    for split in SPLITS:
        paths, wrong = _files(recipe, data, split)
        yield from wrong
        tables[split] = [(path, look(path, data.label, data.delimiter, data.encoding)) for path in paths]
    for split, found in tables.items():
        if found and all(table.empty for _, table in found):
            yield recipe.error(
                _place(data, split), f"{', '.join(str(path) for path, _ in found)} has no rows"
            )
            return
    for key, column in _columns(data, recipe.model.task):
        lacking = [(path, table) for found in tables.values() for path, table in found if table.lacks(column)]
        for path, table in lacking[:1]:
            listed = f"the columns are {', '.join(table.columns or ())}"
            yield recipe.error(key, f"there is no column {column!r} in {path.name}", listed)
    yield from _labels(recipe, data, tables)


def _place(data: DataSection, split: str) -> str:
    value = getattr(data, split)
    named = isinstance(value, str) and not _is_file(value) and data.path is not None
    return "data.path" if named else f"data.{split}"


def _is_file(value: str) -> bool:
    return is_local(value) or value.lower().endswith(DATA_SUFFIXES)


def _files(recipe: Recipe, data: DataSection, split: str) -> tuple[list[Path], list[CookError]]:
    """The files of a split, as far as they are certain, and what is wrong with how it is named."""
    key, wanted = f"data.{split}", getattr(data, split)
    if isinstance(wanted, str) and not _is_file(wanted):
        known = _splits(data)
        match = SLICE.fullmatch(wanted)
        if known is None or match is None:
            return [], []
        named = match["name"]
        if named not in known:
            listed = f"the splits are {', '.join(known)}; a part (train[90%:]) or a file serves as well"
            hint = nearest(named, known) or listed
            return [], [recipe.error(key, f"there is no split {named!r}", hint)]
        file = known[named]
        return ([file] if file is not None else []), []
    items = (wanted,) if isinstance(wanted, str) else wanted
    if not isinstance(items, tuple) or not all(isinstance(item, str) for item in items):
        return [], []
    paths = [Path(item) for item in items]
    wrong = [recipe.error(key, f"there is no file {path}") for path in paths if not path.is_file()]
    return [path for path in paths if path.is_file()], wrong


def _splits(data: DataSection) -> dict[str, Path | None] | None:
    """The splits of `data.path` by name, each with its file if it is one; None where they are not known."""
    if data.path == DIGITS:
        return dict.fromkeys(SPLITS)
    if data.path is None or not is_local(data.path):
        return None
    path = Path(data.path)
    if path.is_file():
        return {"train": path}
    if not path.is_dir() or data.config is not None:
        return None
    stems = {file.stem: file for file in sorted(path.iterdir()) if file.name.lower().endswith(DATA_SUFFIXES)}
    wanted = [value for value in (data.train, data.validation) if isinstance(value, str)]
    named = {match["name"] for value in wanted if (match := SLICE.match(value))}
    return dict(stems) if named & set(stems) else None


def _columns(data: DataSection, task: str | None) -> Iterator[tuple[str, str]]:
    """The columns that a run needs, each with its key."""
    if task == "text-classification" and data.text is not None:
        for name in (data.text,) if isinstance(data.text, str) else data.text:
            yield "data.text", name
    if task == "image-classification" and data.image is not None:
        yield "data.image", data.image
    yield "data.label", data.label


def _labels(recipe: Recipe, data: DataSection, tables: Mapping[str, list[tuple[Path, Table]]]) -> Found:
    """Columns without any label, and more labels than the model's head has classes."""
    column, read = data.label, [each for found in tables.values() for each in found]
    known: set[str] = set()
    for path, table in read:
        if table.labels is None:
            continue
        values = {_name(value) for value in table.labels}
        if values == {""}:
            yield recipe.error("data.label", f"no row of {path.name} has a label in column {column!r}")
            return
        known |= values
    whole = all(tables.values()) and all(table.labels is not None for _, table in read)
    cut = data.limit is not None or any("[" in str(split) for split in (data.train, data.validation))
    labels = known - {"", "-1"}
    classes = _classes(recipe)
    if whole and not cut and classes is not None and len(labels) > len(classes):
        yield recipe.error(
            "data.label",
            f"the data has {len(labels)} labels ({_listed(sorted(labels))}), the model in "
            f"{Path(str(recipe.model.path)).name} tells {len(classes)} classes apart ({_listed(classes)})",
            "write model.head: new to put a new head of the data's labels in the place of the model's",
        )


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join([*map(repr, names[:most]), *(["..."] if len(names) > most else [])])


def _name(value: Any) -> str:
    """A label so that all ways to write one are the same."""
    text = "" if value is None else str(value).strip().casefold()
    try:
        return str(int(float(int(value) if isinstance(value, bool) else text)))
    except (ValueError, OverflowError):
        return text


def _classes(recipe: Recipe) -> list[str] | None:
    """The classes of a local model's head; None where it gets a new one, or they are not certain."""
    model = recipe.model
    if model.head != "keep" or model.labels is not None or model.path is None:
        return None
    if model.task is None or not is_local(model.path):
        return None
    try:
        config = json.loads((Path(model.path) / "config.json").read_text(encoding="utf-8"))
        ends = HEADS[model.task]
        if not any(str(name).endswith(ends) for name in config.get("architectures") or ()):
            return None
        said = [list(map(str, (config.get("id2label") or {}).values())), list(config.get("label2id") or ())]
        default = [f"LABEL_{index}" for index in range(int(config.get("num_labels") or 2))]
        return max(*said, default, key=len)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
