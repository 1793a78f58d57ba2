"""Loads the datasets of a recipe's `data` section: hub, folders, files, the digits of scikit-learn.

Rows are returned as stored. Their interpretation (which column is text, which label has which id) is up to
the task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import datasets
import numpy as np
from datasets import Dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import utils as hub

from cook.data.files import tables
from cook.data.files.formats import DIGITS, SLICE
from cook.data.files.parts import Origin, Part
from cook.data.rows import checks, cutting
from cook.errors import CookError, nearest
from cook.say import Say, silent
from cook.sections import Cut, DataSection

Source: TypeAlias = "Mapping[str, Callable[[], Part]]"
"""The splits of a dataset by name, each read on access."""


class ErrorAt(Protocol):
    """Creates the error for one key of the recipe; `Recipe.error` is one."""

    def __call__(self, key: str, message: str, hint: str | None = None, /) -> CookError: ...


def load(
    data: DataSection,
    error: ErrorAt,
    *,
    splits: Sequence[str] = ("train", "validation"),
    columns: Callable[[Dataset], checks.Columns] | None = None,
    classes: bool = False,
    say: Say = silent,
) -> dict[str, Dataset]:
    """Read the splits that the section names.

    Args:
        data: the section. A split is a name (`train`, or a part of one: `train[:90%]`, `train[-500:]`), a
            file or several; `validation` may be the fraction of the rows of train to split off.
        error: places an error in the recipe.
        splits: which of `train` and `validation` to read.
        columns: the columns of a dataset that must have a value in every row; None checks none.
        classes: whether the recipe lists the classes, so that there may be many.
        say: called with a line for every irregularity of the data.

    Returns:
        A dataset for each of `splits`; `train` has at most `data.limit` rows.

    Raises:
        CookError: data are missing, unreadable or empty, or the splits overlap.
    """
    cut = isinstance(data.validation, Cut)
    parts = _read(data, error, ("train",) if cut else splits)
    return settle(parts, data, error, splits=splits, columns=columns, classes=classes, say=say)


def settle(
    parts: dict[str, Part],
    data: DataSection,
    error: ErrorAt,
    *,
    splits: Sequence[str],
    columns: Callable[[Dataset], checks.Columns] | None = None,
    classes: bool = False,
    say: Say = silent,
) -> dict[str, Dataset]:
    """Splits as used: without rows with missing cells, cut, compared and limited; as `load`."""
    for split, part in parts.items():
        if not len(part.dataset):
            raise error(f"data.{split}", f"{getattr(data, split)!r} has no rows")
    same = checks.check_overlap(parts, data, error, say)
    if columns is not None:
        drop = data.missing == "drop"
        parts = {
            split: checks.without_missing(part, columns(part.dataset), split, error, drop=drop, say=say)
            for split, part in parts.items()
        }
    if isinstance(data.validation, Cut) and "validation" not in parts:
        parts = cutting.parts(parts["train"], data.validation, data.label, error, say)
    found = {split: parts[split].dataset for split in splits}
    needed = {split: columns(dataset) for split, dataset in found.items()} if columns is not None else {}
    if "train" in found:
        for column in needed.get("train", {}).get("data.label", ()) if not classes else ():
            checks.check_classes(found["train"], column, error)
        found["train"] = sample(found["train"], data.limit)
    if needed:
        checks.compare(found, needed, say, same=same)
    return found


def _read(data: DataSection, error: ErrorAt, splits: Sequence[str]) -> dict[str, Part]:
    """The splits as stored."""
    result: dict[str, Part] = {}
    source: Source | None = None
    for split in splits:
        key, wanted = f"data.{split}", getattr(data, split)
        if not wanted:
            raise error(key, "no split and no file is given")
        if not isinstance(wanted, str) or _names_file(wanted):
            paths = [wanted] if isinstance(wanted, str) else wanted
            part = _files([Path(path) for path in paths], data, key, error)
        else:
            if source is None:
                source = _source(data, [getattr(data, name) for name in splits], key, error)
            part = _part(source, wanted, key, error)
        if not len(part.dataset):
            raise error(key, f"{wanted!r} has no rows")
        result[split] = part
    return result


def sample(dataset: Dataset, limit: int | None) -> Dataset:
    """At most `limit` rows, sampled with a fixed seed, in their old order.

    The first rows would not be representative: tables are often sorted by label.
    """
    if limit is None or limit >= len(dataset):
        return dataset
    # The stream of RandomState is guaranteed not to change across numpy versions.
    return dataset.select(np.sort(np.random.RandomState(0).permutation(len(dataset))[:limit]))


@contextmanager
def quiet() -> Iterator[None]:
    """Disable the progress bars of `datasets` and the hub in the context."""
    bars = not datasets.are_progress_bars_disabled()
    hub_bars = not hub.are_progress_bars_disabled()
    try:
        if bars:
            datasets.disable_progress_bars()
        if hub_bars:
            hub.disable_progress_bars()
        yield
    finally:
        if bars:
            datasets.enable_progress_bars()
        if hub_bars:
            hub.enable_progress_bars()


def digits() -> dict[str, Dataset]:
    """Scikit-learn's 1,797 scanned digits, 8x8 in 256 greys, as a stratified split of 80 and 20 %.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    grey = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    return {
        name: Dataset.from_dict(
            {"image": [Image.fromarray(grey[row]) for row in rows], "label": labels[rows].tolist()},
            features=features,
        )
        for name, rows in (("train", train), ("validation", validation))
    }


def _names_file(value: str) -> bool:
    return tables.is_file_name(value) or Path(value).is_absolute()


def _files(paths: list[Path], data: DataSection, key: str, error: ErrorAt) -> Part:
    for path in paths:
        if not path.is_file():
            raise error(key, f"there is no file {path}", _near(path))
    try:
        dataset, origins = tables.placed(paths, data.image, delimiter=data.delimiter, encoding=data.encoding)
        return Part.whole(dataset, origins)
    except tables.Unreadable as problem:
        raise error(key, str(problem), problem.hint) from problem
    except (OSError, ValueError) as problem:
        raise error(key, str(problem)) from problem


def _near(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return nearest(path.name, (other.name for other in path.parent.iterdir()))


def _source(data: DataSection, wanted: Sequence[Any], key: str, error: ErrorAt) -> Source:
    """The splits of `data.path` by name, each read on access."""
    if not data.path:
        name = getattr(data, key.removeprefix("data."))
        raise error(key, f"{name!r} is no data file, and without data.path there are no splits")
    if data.path.startswith("sklearn:"):
        if data.path != DIGITS:
            raise error("data.path", f"there is no {data.path!r}", f"did you mean {DIGITS!r}?")
        return {name: _ready(name, split) for name, split in digits().items()}
    path = Path(data.path)
    if path.is_file() or (_names_file(data.path) and not path.is_dir()):
        return {"train": partial(_files, [path], data, "data.path", error)}
    if path.is_dir() and data.config is None:
        names = {match["name"] for name in wanted if isinstance(name, str) if (match := SLICE.match(name))}
        found = [file for file in sorted(path.iterdir()) if tables.is_file_name(file.name)]
        if names & {file.stem for file in found}:
            return _stems(found, data, error)
    return {name: _ready(name, split) for name, split in _hub(data, error).items()}


def _ready(name: str, dataset: Dataset) -> Callable[[], Part]:
    return lambda: in_memory(name, dataset)


def in_memory(name: str, dataset: Dataset) -> Part:
    """Rows without a file, counted from 0."""
    return Part.whole(dataset, [Origin(name, range(len(dataset)))])


def _stems(found: list[Path], data: DataSection, error: ErrorAt) -> dict[str, Callable[[], Part]]:
    """Files named after splits: `train.tsv`, `validation.tsv`."""
    splits: dict[str, Callable[[], Part]] = {}
    for file in found:
        if file.stem in splits:
            raise error("data.path", f"{file.parent} has several files for the split {file.stem!r}")
        splits[file.stem] = partial(_files, [file], data, "data.path", error)
    return splits


def _hub(data: DataSection, error: ErrorAt) -> Mapping[str, Dataset]:
    assert data.path is not None
    path = Path(data.path)
    try:
        with quiet():
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                found = datasets.load_from_disk(data.path)
            else:
                found = datasets.load_dataset(data.path, data.config, revision=data.revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as problem:
        hint = "a dataset of the hub, a folder, a file or 'sklearn:digits' is expected"
        raise error("data.path", f"{data.path!r} cannot be read: {problem}", hint) from problem
    return {"train": found} if isinstance(found, Dataset) else dict(found)


def _part(source: Source, wanted: str, key: str, error: ErrorAt) -> Part:
    match = SLICE.fullmatch(wanted)
    if not match:
        hint = "write a name, or a part: train[:90%], train[-500:]"
        if key == "data.validation" and re.fullmatch(r"[0-9.]+%", wanted):
            hint = f"write validation: {{split: {wanted}}} to take random rows out of train"
        raise error(key, f"{wanted!r} is no split", hint)
    if match["name"] not in source:
        known = f"the splits are {', '.join(source)}; a part (train[90%:]) or a file serves as well"
        raise error(key, f"there is no split {match['name']!r}", nearest(match["name"], source) or known)
    part = source[match["name"]]()
    total = len(part.dataset)
    return part.select(range(total)[_row(match["first"], total) : _row(match["last"], total)])


def _row(bound: str | None, total: int) -> int | None:
    if bound is None:
        return None
    return round(int(bound[:-1]) * total / 100) if bound.endswith("%") else int(bound)
