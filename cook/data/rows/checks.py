"""Checks of splits before use: missing cells, invalid labels, rows in both splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from cook.data.files.cells import is_missing, label_names, stripped
from cook.data.files.parts import Part, overlap
from cook.sections import DataSection

if TYPE_CHECKING:
    from cook.data.rows.sources import ErrorAt

Columns = Mapping[str, Sequence[str]]
"""The columns that a task reads, by the recipe key that names them."""
ENOUGH = 20
"""The minimum number of rows to judge a label column by its values."""


BLOCK = 1000
"""The number of rows checked together, since images may be large."""


def without_missing(
    part: Part, columns: Columns, split: str, error: ErrorAt, *, drop: bool, say: Callable[[str], None]
) -> Part:
    """The rows that have a value in all columns.

    Raises:
        CookError: some rows have none and `drop` is false, or all rows have none.
    """
    found = {key: _missing(part.dataset, names) for key, names in columns.items()}
    missing = sorted(set().union(*found.values()))
    if not missing:
        return part
    key = next(key for key, rows in found.items() if rows)
    if not drop:
        messages = [
            f"{_columns(columns[key])} empty in {len(rows)} of {len(part.dataset)} rows of {split}: "
            f"{part.describe(rows)}"
            for key, rows in found.items()
            if rows
        ]
        hint = "fill them in, or leave these rows out with data.missing: drop"
        raise error(key, "; ".join(messages), hint)
    if len(missing) == len(part.dataset):
        raise error(key, f"{split} has no rows left: {_columns(columns[key])} empty in all rows")
    say(
        f"{split}: {len(missing)} of {len(part.dataset)} rows are left out, which have no "
        f"{' or no '.join(key.removeprefix('data.') for key, rows in found.items() if rows)}: "
        f"{part.describe(missing)}"
    )
    kept = set(range(len(part.dataset))) - set(missing)
    return part.select(sorted(kept))


def _columns(names: Sequence[str]) -> str:
    listed = " or ".join(repr(name) for name in names)
    return f"column {listed} is" if len(names) == 1 else f"columns {listed} are"


def _missing(dataset: Dataset, columns: Sequence[str]) -> list[int]:
    """The rows without a value in one of the columns."""
    rows: set[int] = set()
    blocks = dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=BLOCK)
    for start, table in zip(range(0, len(dataset), BLOCK), blocks, strict=True):
        for column in table.columns:
            kind = column.type
            if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_floating(kind):
                found = [row for row, value in enumerate(column.to_pylist()) if is_missing(value)]
            else:
                found = pc.indices_nonzero(pc.is_null(column)).to_pylist() if column.null_count else []
            rows.update(start + row for row in found)
    return sorted(rows)


def check_overlap(
    parts: Mapping[str, Part], data: DataSection, error: ErrorAt, say: Callable[[str], None]
) -> bool:
    """Whether train and validation are the same rows, which is reported.

    Raises:
        CookError: they have some, but not all, rows in common.
    """
    if not {"train", "validation"} <= parts.keys():
        return False
    train, validation = parts["train"], parts["validation"]
    both = overlap(train, validation)
    if not both:
        return False
    if both == len(train.dataset) == len(validation.dataset):
        say("train and validation are the same rows: the metrics say nothing about other data")
        return True
    raise error(
        "data.validation",
        f"{both} of {len(validation.dataset)} validation rows are training rows too: "
        f"train is {_written(data.train)}, validation is {_written(data.validation)}",
        "cut them apart, as in train: 'train[:90%]' and validation: 'train[90%:]', "
        "or write validation: {split: 10%} to take random rows out of train",
    )


def _written(value: Any) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, (list, tuple)) else repr(value)


def check_classes(dataset: Dataset, column: str, error: ErrorAt) -> None:
    """Check that a column can contain labels, by its number of distinct values.

    Raises:
        CookError: the number of distinct values exceeds half the number of rows.
    """
    if isinstance(dataset.features[column], ClassLabel) or len(dataset) < ENOUGH:
        return
    different = len(set(label_names(dataset, column)))
    if 2 * different > len(dataset):
        columns = ", ".join(dataset.column_names)
        raise error(
            "data.label",
            f"column {column!r} has {different} different values in {len(dataset)} rows, which is too many "
            "for labels",
            f"name the column of the labels; the columns are {columns}. If each value is a class, list the "
            "classes in model.labels",
        )


def compare(
    splits: Mapping[str, Dataset], columns: Mapping[str, Columns], say: Callable[[str], None], *, same: bool
) -> None:
    """Report irregularities in the labels and texts of the splits.

    Args:
        columns: of each split.
        same: both splits are known to have the same rows.
    """
    for split, dataset in splits.items():
        for column in columns[split].get("data.label", ()):
            _whitespace(dataset, column, split, say)
    if "train" not in splits:
        return
    train, validation = splits["train"], splits.get("validation")
    for column in columns["train"].get("data.label", ()):
        known = Counter(label_names(train, column))
        if len(known) == 1:
            say(f"all {len(train)} rows of train have the label {next(iter(known))!r}")
        if validation is not None:
            counts = Counter(label_names(validation, column))
            if new := [
                f"{name!r} ({count} rows)" for name, count in sorted(counts.items()) if not known[name]
            ]:
                say(
                    f"train has no rows of {len(new)} of the {len(counts)} classes of validation: "
                    f"{', '.join(new[:12])}{', ...' if len(new) > 12 else ''}; if the rows are sorted by "
                    "label, write validation: {split: 10%, stratify: true}"
                )
    texts = columns["train"].get("data.text", ())
    if validation is None or same or not texts:
        return
    seen = set(_texts(train, texts))
    if repeated := sum(text in seen for text in _texts(validation, texts)):
        say(f"{repeated} of {len(validation)} validation rows have the same text as a row of train")


def _texts(dataset: Dataset, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(dataset[column][:] for column in columns), strict=True))


def _whitespace(dataset: Dataset, column: str, split: str, say: Callable[[str], None]) -> None:
    if getattr(dataset.features[column], "dtype", None) not in ("string", "large_string"):
        return
    odd = [value for value in dataset[column][:] if value is not None and value != stripped(value)]
    if odd:
        shown = ", ".join(repr(value) for value in sorted(set(odd))[:3])
        say(f"{split}: whitespace around {len(odd)} labels is left out ({shown})")
