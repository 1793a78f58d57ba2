"""The first look at a data file: its columns and labels, as far as they are certain and cheap to know.

Reading a file for a run is another matter, and imports a library of tables. What this module is not sure of
it leaves open, so that a check made with it never refuses what a run would read.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cook.data.files.formats import DELIMITERS

LIMIT = 4_000_000
"""Bytes of a text file that are read; of a larger one only the first line is looked at."""


@dataclass(frozen=True)
class Table:
    """What is known of a file.

    Attributes:
        columns: their names; None where they are not certain.
        possible: further names that a column could have, under another delimiter.
        empty: whether there certainly is no row.
        labels: of all rows, in their order; None where they are not certain.
    """

    columns: tuple[str, ...] | None = None
    possible: frozenset[str] = frozenset()
    empty: bool = False
    labels: tuple[Any, ...] | None = None

    def lacks(self, column: str) -> bool:
        """Whether there certainly is no such column. Blanks and capitals are no certain difference."""
        if self.columns is None:
            return False
        plain = {name.strip().casefold() for name in (*self.columns, *self.possible)}
        return column.strip().casefold() not in plain


UNKNOWN = Table()


def look(path: Path, label: str, delimiter: str | None = None, encoding: str | None = None) -> Table:
    """What can be known of a file at once.

    Args:
        label: the column of the labels.
        delimiter, encoding: as the recipe has them; None where it leaves them open.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _parquet(path)
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
        whole = len(data) <= LIMIT
        text = (data if whole else data.partition(b"\n")[0]).decode(encoding or "utf-8-sig")
        if "\0" in text:  # not the encoding that it was read in
            return UNKNOWN
        if suffix in (".csv", ".tsv"):
            usual = delimiter or ("\t" if suffix == ".tsv" else ",")
            return _separated(text, label, usual, delimiter, whole)
        if suffix == ".txt":
            return Table(("text",), empty=not data)
        if suffix in (".json", ".jsonl", ".ndjson") and whole:
            return _objects(text, label)
    except (OSError, ValueError, LookupError, TypeError, csv.Error, RecursionError):
        pass  # whoever reads it in earnest says what is wrong
    return UNKNOWN


def _separated(text: str, label: str, usual: str, given: str | None, whole: bool) -> Table:
    lines = list(io.StringIO(text, newline=""))
    if not lines:
        return Table((), empty=True)
    if not whole and text.count('"') % 2:  # the names of the columns go on in the next line
        return UNKNOWN
    marks = (usual, *DELIMITERS) if given is None else (usual,)
    headers = {mark: next(csv.reader(lines, delimiter=mark), []) for mark in marks}
    columns = tuple(headers.pop(usual))
    possible = frozenset(name for header in headers.values() for name in header)
    if not whole:
        return Table(columns, possible)
    empty = not any(line.strip() for line in lines[1:]) and not text.count('"')
    # Whether a quote in a TSV means anything depends on all rows.
    certain = usual == "," or '"' not in text
    labels = _labels(columns, label, csv.reader(lines, delimiter=usual)) if certain else None
    return Table(columns, possible, empty, labels)


def _labels(columns: tuple[str, ...], label: str, read: Iterable[list[str]]) -> tuple[str, ...] | None:
    rows = [row for row in read if row][1:]
    if not rows or label not in columns or any(len(row) != len(columns) for row in rows):
        return None
    at = columns.index(label)
    return tuple(row[at] for row in rows)


def _objects(text: str, label: str) -> Table:
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        return UNKNOWN
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    labels = tuple(row.get(label) for row in rows) if label in columns else None
    return Table(columns, empty=not rows, labels=labels)


def _parquet(path: Path) -> Table:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            return Table(tuple(file.schema_arrow.names), empty=file.metadata.num_rows == 0)
    except ArrowException:
        return UNKNOWN
