"""Interpretation of single cells: missing values and label names."""

from __future__ import annotations

import re
from typing import Any

from datasets import ClassLabel, Dataset

_INVISIBLE = "\\s\u200b\u200c\u200d\u2060\ufeff"
_AROUND = re.compile(f"^[{_INVISIBLE}]+|[{_INVISIBLE}]+$")


def stripped(text: str) -> str:
    """`text` without surrounding whitespace and zero-width characters."""
    return _AROUND.sub("", text)


def is_missing(value: Any) -> bool:
    """Whether a cell is missing: None, NaN, or a text without a visible character."""
    if isinstance(value, str):
        return not stripped(value)
    return value is None or (isinstance(value, float) and value != value)


def as_name(value: Any) -> str:
    """The name of a label value without surrounding whitespace: `1`, `1.0`, `True` and `"1 "` are all `1`."""
    whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
    return stripped(str(int(value) if whole else value))


def label_names(dataset: Dataset, column: str) -> list[str]:
    """The name of each row's label; a ClassLabel's id is mapped to its name if it is in range."""
    feature = dataset.features[column]
    names = feature.names if isinstance(feature, ClassLabel) else ()
    values = dataset[column][:]
    return [as_name(names[value] if names and value in range(len(names)) else value) for value in values]
