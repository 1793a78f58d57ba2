"""Reads data files of all supported formats as tables.

Text tables (csv, tsv) are untyped: a column becomes numeric only if every value is a number, regardless of
the order of rows, and no word (`NA`, `none`) is treated as missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset
from datasets.table import InMemoryTable

from cook.data.files import delimited, excel
from cook.data.files.cells import is_missing
from cook.data.files.encodings import Unreadable, read_text
from cook.data.files.formats import DATA_SUFFIXES
from cook.data.files.parts import Origin


def is_file_name(value: str) -> bool:
    """Whether `value` names a data file, by its suffix, rather than a split."""
    return Path(value).suffix.lower() in DATA_SUFFIXES


def read(paths: Sequence[Path], image: str | None = None, **options: str | None) -> Dataset:
    """The rows of `paths`, concatenated; as for `placed`."""
    return placed(paths, image, **options)[0]


def placed(
    paths: Sequence[Path],
    image: str | None = None,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> tuple[Dataset, list[Origin]]:
    """The rows of `paths`, concatenated, and their locations in the files.

    Args:
        paths: files whose suffix is in DATA_SUFFIXES, all with the same columns.
        image: a column of image paths, resolved relative to the folder of its file.
        delimiter: of csv and tsv files; None detects it, as `delimited.parse` does.
        encoding: of text files; None uses the byte order mark, else UTF-8.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file's content does not match its suffix; the message names the file.
    """
    tables, origins = [], []
    for path in paths:
        try:
            table, origin = _table(path, delimiter, encoding)
        except Unreadable as problem:
            raise Unreadable(f"{path}: {_brief(problem, 400)}", problem.hint) from problem
        except (ValueError, pa.ArrowException) as problem:
            raise ValueError(f"{path}: {_brief(problem)}") from problem
        tables.append(_absolute(table, image, path.parent) if image in table.column_names else table)
        origins.append(origin)
    first = tables[0]
    for path, table in zip(paths, tables, strict=True):
        if sorted(table.column_names) != sorted(first.column_names):
            raise ValueError(f"{path} has the columns {table.column_names}, {paths[0]} {first.column_names}")
    ordered = [table.select(first.column_names) for table in tables]
    table = pa.concat_tables(ordered, promote_options="permissive")
    if all(path.suffix.lower() in (".csv", ".tsv") for path in paths):
        table = pa.table({name: _numbers(table[name]) for name in table.column_names})
    return Dataset(InMemoryTable(table)), origins


def _table(path: Path, delimiter: str | None, encoding: str | None) -> tuple[pa.Table, Origin]:
    suffix, name = path.suffix.lower(), str(path.resolve())
    if suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        return table, Origin(name, range(len(table)))
    if suffix == ".xlsx":
        columns, numbers = excel.read(path)
        return pa.table(columns), Origin(name, numbers, first=1)
    if suffix not in DATA_SUFFIXES:
        raise ValueError(f"a data file ends in one of {', '.join(DATA_SUFFIXES)}")
    text = read_text(path, encoding)
    if suffix in (".csv", ".tsv"):
        parsed = delimited.parse(text, "\t" if suffix == ".tsv" else ",", delimiter)
        cells = zip(*parsed.rows, strict=True) if parsed.rows else ([] for _ in parsed.names)
        columns = {name: pa.array(cell, pa.string()) for name, cell in zip(parsed.names, cells, strict=True)}
        return pa.table(columns), Origin(name, parsed.lines, "line", 1)
    if suffix == ".txt":
        lines = re.sub("\r\n?", "\n", text).removesuffix("\n").split("\n") if text else []
        return pa.table({"text": pa.array(lines, pa.string())}), Origin(
            name, range(1, len(lines) + 1), "line", 1
        )
    rows, unit, places = _json_rows(text)
    return _records(rows), Origin(name, places, unit, 1)


def _json_rows(text: str) -> tuple[list[dict[str, Any]], str, list[int]]:
    """The objects of a JSON list, or of a text with one per line; the unit of counting, and their numbers."""
    if text.lstrip().startswith("["):
        rows = json.loads(text)
        numbered: Iterable[tuple[int, Any]] = enumerate(rows, 1)
        unit = "item"
    else:
        unit = "line"
        numbered = ((number, _json_line(line, number)) for number, line in _filled(text))
    result, places = [], []
    for number, row in numbered:
        if not isinstance(row, dict):
            raise ValueError(f"{unit} {number} is no object: expected a list of objects, or one a line")
        result.append(row)
        places.append(number)
    return result, unit, places


def _filled(text: str) -> Iterable[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _json_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as problem:
        raise ValueError(f"line {number} is not one JSON value: {problem}") from problem


def _records(rows: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` as integers if they print as the same text, else as reals, else unchanged."""
    try:
        integers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        pass
    else:
        return integers if integers.cast(pa.string()).equals(column) else column
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid:
        return column


def _absolute(table: pa.Table, image: str | None, folder: Path) -> pa.Table:
    index = table.column_names.index(image)
    if not pa.types.is_string(table.schema.types[index]):
        return table
    paths = [value if is_missing(value) else str(folder / value) for value in table[image].to_pylist()]
    return table.set_column(index, image, pa.array(paths, pa.string()))


def _brief(problem: Exception, limit: int = 200) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= limit else text[:limit] + " ..."
