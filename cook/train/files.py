"""Data files of every kind that a recipe may name, as tables.

Tables of text (csv, tsv) hold nothing but text: a column becomes numbers only when every value is
one, whatever the rows before it looked like, and no word (`NA`, `none`) is ever taken for a gap.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset
from datasets.table import InMemoryTable

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt")


def is_file_name(value: str) -> bool:
    """Whether `value` names a data file, by its suffix, rather than a split."""
    return Path(value).suffix.lower() in SUFFIXES


def read(paths: Sequence[Path], image: str | None = None) -> Dataset:
    """The rows of `paths`, one file after the other.

    Args:
        paths: files whose suffix is in SUFFIXES, all with the same columns.
        image: a column of image paths, made absolute from the folder of its file.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file's content is not what its suffix says; the text names the file.
    """
    tables = []
    for path in paths:
        try:
            table = _table(path)
        except UnicodeDecodeError as problem:
            raise ValueError(f"{path} is not UTF-8: {problem}") from problem
        except (ValueError, pa.ArrowException, csv.Error) as problem:
            raise ValueError(f"{path}: {_brief(problem)}") from problem
        tables.append(_absolute(table, image, path.parent) if image in table.column_names else table)
    first = tables[0]
    for path, table in zip(paths, tables, strict=True):
        if sorted(table.column_names) != sorted(first.column_names):
            raise ValueError(f"{path} has the columns {table.column_names}, {paths[0]} {first.column_names}")
    ordered = [table.select(first.column_names) for table in tables]
    table = pa.concat_tables(ordered, promote_options="permissive")
    if all(path.suffix.lower() in (".csv", ".tsv") for path in paths):
        table = pa.table({name: _numbers(table[name]) for name in table.column_names})
    return Dataset(InMemoryTable(table))


def _table(path: Path) -> pa.Table:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _separated(path, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return pyarrow.parquet.read_table(path)
    if suffix == ".txt":
        with path.open(encoding="utf-8-sig") as lines:
            return pa.table({"text": pa.array([line.rstrip("\n") for line in lines], pa.string())})
    if suffix in SUFFIXES:
        return _records(_json_rows(path))
    raise ValueError(f"a data file ends in one of {', '.join(SUFFIXES)}")


def _separated(path: Path, delimiter: str) -> pa.Table:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        names = next(csv.reader(lines, delimiter=delimiter), [])
    if not names:
        raise ValueError("the file is empty; its first line must name the columns")
    if len(set(names)) < len(names):
        raise ValueError(f"two columns have the same name in {names}")
    parsed = partial(
        pyarrow.csv.read_csv,
        path,
        # One row must fit into one block: 16 MiB is more than any text that a model reads.
        read_options=pyarrow.csv.ReadOptions(block_size=1 << 24),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )
    quoted = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    if delimiter != "\t":
        return parsed(parse_options=quoted)
    # Tables like GLUE's know no quotes: there one at the start of a text would swallow rows until the next.
    # Where quotes hold tabs or ends of lines, and each line has all columns without them, they mean nothing.
    unquoted = pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False)
    try:
        table = parsed(parse_options=quoted)
    except pa.ArrowInvalid:
        return parsed(parse_options=unquoted)
    if any(pc.any(pc.match_substring_regex(column, r"[\t\n]")).as_py() for column in table.columns):
        with suppress(pa.ArrowInvalid):
            return parsed(parse_options=unquoted)
    return table


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list, or of a file with one object a line."""
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        rows = json.loads(text)
        numbered: Iterable[tuple[int, Any]] = enumerate(rows, 1)
        unit = "item"
    else:
        unit = "line"
        numbered = ((number, _json_line(line, number)) for number, line in _filled(text))
    result = []
    for number, row in numbered:
        if not isinstance(row, dict):
            raise ValueError(f"{unit} {number} is no object: expected a list of objects, or one a line")
        result.append(row)
    return result


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
    """`column` as integers if they print as the same text, else as reals, else as it is."""
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
    paths = [None if value is None else str(folder / value) for value in table[image].to_pylist()]
    return table.set_column(index, image, pa.array(paths, pa.string()))


def _brief(problem: Exception, limit: int = 200) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= limit else text[:limit] + " ..."
