"""From the `data` section of a recipe to datasets: hub, folders, files, the digits of scikit-learn.

Rows come out as they are stored. What a row means (which column is text, which label is which number)
is for the task to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
from datasets import Dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import utils as hub

from cook.errors import CookError, nearest
from cook.train import files

DIGITS = "sklearn:digits"
SLICE = re.compile(r"(?P<name>[\w.\-]+)(\[(?P<first>-?\d+%?)?:(?P<last>-?\d+%?)?\])?")


class ErrorAt(Protocol):
    """Makes the error of one key of the recipe; `Recipe.error` is one."""

    def __call__(self, key: str, message: str, hint: str | None = None, /) -> CookError: ...


def load(data: Any, error: ErrorAt, *, splits: Sequence[str] = ("train", "validation")) -> dict[str, Dataset]:
    """Read the splits that the section names.

    Args:
        data: the section: `path`, `config`, `revision`, `train`, `validation`, `image`, `limit`. A split
            is a name (`train`, or a part of one: `train[:90%]`, `train[-500:]`), a file or several.
        error: places an error in the recipe.
        splits: which of `train` and `validation` to read.

    Returns:
        A dataset for each of `splits`; `train` holds at most `data.limit` rows.

    Raises:
        CookError: something is missing, unreadable or empty.
    """
    result: dict[str, Dataset] = {}
    source: Mapping[str, Callable[[], Dataset]] | None = None
    for split in splits:
        key, wanted = f"data.{split}", getattr(data, split)
        if not wanted:
            raise error(key, "no split and no file is given")
        if not isinstance(wanted, str) or _names_file(wanted):
            paths = [wanted] if isinstance(wanted, str) else wanted
            dataset = _files([Path(path) for path in paths], data.image, key, error)
        else:
            if source is None:
                source = _source(data, [getattr(data, name) for name in splits], key, error)
            dataset = _part(source, wanted, key, error)
        if not len(dataset):
            raise error(key, f"{wanted!r} has no rows")
        result[split] = sample(dataset, data.limit) if split == "train" else dataset
    return result


def sample(dataset: Dataset, limit: int | None) -> Dataset:
    """At most `limit` rows: always the same ones, drawn from everywhere, in their old order.

    The first rows would not do: tables are often sorted by label.
    """
    if limit is None or limit >= len(dataset):
        return dataset
    # RandomState's stream is frozen for good, so the rows stay the same across numpy versions.
    return dataset.select(np.sort(np.random.RandomState(0).permutation(len(dataset))[:limit]))


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of `datasets` and the hub inside; afterwards as it was before."""
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
    return files.is_file_name(value) or Path(value).is_absolute()


def _files(paths: list[Path], image: str | None, key: str, error: ErrorAt) -> Dataset:
    for path in paths:
        if not path.is_file():
            raise error(key, f"there is no file {path}", _near(path))
    try:
        return files.read(paths, image)
    except (OSError, ValueError) as problem:
        raise error(key, str(problem)) from problem


def _near(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return nearest(path.name, (other.name for other in path.parent.iterdir()))


def _source(
    data: Any, wanted: Sequence[Any], key: str, error: ErrorAt
) -> Mapping[str, Callable[[], Dataset]]:
    """The splits of `data.path` by name, each read when it is called for."""
    if not data.path:
        name = getattr(data, key.removeprefix("data."))
        raise error(key, f"{name!r} is no data file, and without data.path there are no splits")
    if data.path.startswith("sklearn:"):
        if data.path != DIGITS:
            raise error("data.path", f"there is no {data.path!r}", f"did you mean {DIGITS!r}?")
        return {name: _ready(split) for name, split in digits().items()}
    path = Path(data.path)
    if path.is_file() or (_names_file(data.path) and not path.is_dir()):
        return {"train": partial(_files, [path], data.image, "data.path", error)}
    if path.is_dir() and data.config is None:
        names = {match["name"] for name in wanted if isinstance(name, str) if (match := SLICE.match(name))}
        found = [file for file in sorted(path.iterdir()) if files.is_file_name(file.name)]
        if names & {file.stem for file in found}:
            return _stems(found, data.image, error)
    return {name: _ready(split) for name, split in _hub(data, error).items()}


def _ready(dataset: Dataset) -> Callable[[], Dataset]:
    return lambda: dataset


def _stems(found: list[Path], image: str | None, error: ErrorAt) -> dict[str, Callable[[], Dataset]]:
    """Files whose names say which split they are: `train.tsv`, `validation.tsv`."""
    splits: dict[str, Callable[[], Dataset]] = {}
    for file in found:
        if file.stem in splits:
            raise error("data.path", f"{file.parent} has several files for the split {file.stem!r}")
        splits[file.stem] = partial(_files, [file], image, "data.path", error)
    return splits


def _hub(data: Any, error: ErrorAt) -> Mapping[str, Dataset]:
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


def _part(source: Mapping[str, Callable[[], Dataset]], wanted: str, key: str, error: ErrorAt) -> Dataset:
    match = SLICE.fullmatch(wanted)
    if not match:
        raise error(key, f"{wanted!r} is no split", "write a name, or a part: train[:90%], train[-500:]")
    if match["name"] not in source:
        known = f"the splits are {', '.join(source)}; a part (train[90%:]) or a file serves as well"
        raise error(key, f"there is no split {match['name']!r}", nearest(match["name"], source) or known)
    dataset = source[match["name"]]()
    rows = range(len(dataset))[_row(match["first"], len(dataset)) : _row(match["last"], len(dataset))]
    return dataset if len(rows) == len(dataset) else dataset.select(rows)


def _row(bound: str | None, total: int) -> int | None:
    if bound is None:
        return None
    return round(int(bound[:-1]) * total / 100) if bound.endswith("%") else int(bound)
