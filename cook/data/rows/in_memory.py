"""Converts rows given in memory to datasets: DataFrames, columns, records."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from datasets.table import InMemoryTable

from cook.errors import CookError

ACCEPTED = (
    "rows are a DataFrame (pandas, polars or another that exports Arrow data), a dict of columns (lists of "
    "equal length), an iterable of dicts (a list, a generator) or a datasets.Dataset"
)


def dataset(rows: Any, split: str) -> Dataset:
    """The rows of one split. Iterators are consumed; the index of a DataFrame is ignored.

    Args:
        rows: as described by ACCEPTED. NaN and `pandas.NA` are missing values, like None.
        split: the name of the rows in errors.

    Raises:
        CookError: the rows have another type, or a column mixes types.
    """
    where = f"data[{split!r}]"
    try:
        return _dataset(rows, where)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as problem:
        message = f"the rows cannot be read as a table: {' '.join(str(problem).split())[:300]}"
        raise CookError(message, where=where, hint="all values of a column must be of one type") from problem


def _dataset(rows: Any, where: str) -> Dataset:
    if isinstance(rows, Dataset):
        return rows.with_format(None)
    if isinstance(rows, IterableDataset):
        rows = rows.with_format(None)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        names = list(rows.columns)
        if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            message = f"the columns of the DataFrame are {names[:12]}"
            raise CookError(message, where=where, hint="name each column once, by a text")
        return _of_columns({name: rows[name].astype(object).tolist() for name in names}, where)
    if hasattr(rows, "__arrow_c_stream__"):
        # A single column (a Series) also exports a stream, which is not a table.
        with suppress(pa.ArrowInvalid):
            return Dataset(InMemoryTable(_plain(pa.table(rows))))
    if hasattr(rows, "collect"):
        hint = f"call .collect() on it: {ACCEPTED}"
        raise CookError(f"found a {type(rows).__name__}, expected rows", where=where, hint=hint)
    if isinstance(rows, Mapping):
        return _of_columns(rows, where)
    if isinstance(rows, (str, bytes)) or (not hasattr(rows, "__iter__") and not hasattr(rows, "__getitem__")):
        raise CookError(f"found a {type(rows).__name__}, expected rows", where=where, hint=ACCEPTED)
    records = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            message = f"row {number} (counted from 0) is a {type(row).__name__}, expected a dict"
            raise CookError(message, where=where, hint=ACCEPTED)
        records.append(row)
    keys = dict.fromkeys(name for row in records for name in row)
    return _of_columns({name: [row.get(name) for row in records] for name in keys}, where)


def _plain(table: pa.Table) -> pa.Table:
    """A table in the types supported by `datasets`: categories as their values, NaN as a missing value."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            chunks = [_text(chunk.dictionary).take(chunk.indices) for chunk in column.chunks]
            column = pa.chunked_array(chunks) if chunks else pa.chunked_array([], column.type.value_type)
        column = _text(column)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        columns[name] = column
    return pa.table(columns)


def _text(values: Any) -> Any:
    """An array with text in the type supported by `datasets`."""
    return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values


def _of_columns(columns: Mapping[Any, Any], where: str) -> Dataset:
    lists: dict[str, list[Any]] = {}
    for name, values in columns.items():
        listed = hasattr(values, "__len__") and hasattr(values, "__iter__")
        if not isinstance(name, str) or not listed or isinstance(values, (str, bytes, Mapping)):
            message = f"column {name!r} is a {type(values).__name__}, expected a list of values"
            raise CookError(message, where=where, hint=ACCEPTED)
        lists[name] = [None if _is_nothing(value) else value for value in values]
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise CookError(f"the columns differ in length: {lengths}", where=where, hint=ACCEPTED)
    return Dataset.from_dict(lists)


def _is_nothing(value: Any) -> bool:
    """Whether a value is NaN, `pandas.NA` or `pandas.NaT`."""
    if isinstance(value, (float, np.floating)):
        return bool(value != value)
    return type(value).__name__ in ("NAType", "NaTType")
