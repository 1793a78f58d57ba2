"""Text tables: delimiters and quotes of csv and tsv files.

No data are lost or merged silently: every row must have the columns of the header, and the meaning of quotes
is decided for the file as a whole (`_rows`).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cook.data.files.encodings import Unreadable
from cook.data.files.formats import DELIMITERS

_CELL_LIMIT = 1 << 28
_SHOWN = {"\t": '"\\t"'}
_NUMBER = re.compile(r"[-+]?[0-9.,]*(e[-+]?[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """The cells of a table.

    Attributes:
        names: of the columns.
        rows: each as long as `names`.
        lines: of the file, counted from 1, on which each row begins.
    """

    names: list[str]
    rows: list[list[str]]
    lines: list[int]


def parse(text: str, usual: str, delimiter: str | None = None) -> Table:
    """Parse `text` to a table; the first line names the columns, and empty lines are skipped.

    Args:
        usual: the delimiter for the file's suffix. Another one of DELIMITERS is used only if the text is a
            table of several columns with it and not with the usual one.
        delimiter: used regardless of the text.

    Raises:
        Unreadable: there is no header, column names are not unique, or rows differ in length.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")
    head = text.lstrip("\r\n").partition("\n")[0]
    if not head.strip("\r"):
        raise Unreadable("the file is empty; its first line must name the columns")
    others = [each for each in DELIMITERS if each != usual and each in head]
    if delimiter is not None or not others:
        return _table(text, delimiter or usual, standard=(delimiter or usual) != "\t")
    tables: dict[str, Table] = {}
    problem: Unreadable | None = None
    for each in (usual, *others):
        try:
            table = _table(text, each, standard=each != "\t")
        except Unreadable as failure:
            problem = problem or failure
            continue
        if len(table.names) > 1:
            tables[each] = table
        if usual in tables:
            return table
    if len(tables) == 1:
        return next(iter(tables.values()))
    written = ", ".join(_SHOWN.get(each, repr(each)) for each in tables or others)
    hint = f"name the delimiter: data.delimiter: {_SHOWN.get((list(tables) or others)[0], repr(others[0]))}"
    if tables:
        raise Unreadable(f"the columns may be separated by each of {written}", hint)
    what = str(problem) if problem else f"the header {head!r} is a single column"
    raise Unreadable(f"{what}; the header also has {written}", hint)


def _table(text: str, delimiter: str, *, standard: bool) -> Table:
    lines, rows = _rows(text, delimiter, standard)
    names = rows[0]
    if len(set(names)) < len(names):
        raise Unreadable(f"two columns have the same name in {names}")
    return Table(names, rows[1:], lines[1:])


_Read = tuple[list[int], list[list[str]]]


def _rows(text: str, delimiter: str, standard: bool) -> _Read:
    """Rows and the lines they start on, with the interpretation of quotes that fits the whole file.

    Quotes enclose cells if every quoted cell opens and closes according to RFC 4180; otherwise they are
    characters of the texts. In a tab-separated file (without `standard`), where quotes are characters in many
    datasets (GLUE), they enclose cells only if the file also looks like the output of a quoting writer.
    """
    if '"' not in text:
        return _plain(text, delimiter)
    try:
        quoted, failure = _quoted(text, delimiter), None
    except Unreadable as problem:
        quoted, failure = None, problem
    if quoted is not None and standard:
        return quoted
    try:
        plain = _plain(text, delimiter)
    except Unreadable as problem:
        if quoted is not None:
            return quoted
        assert failure is not None
        raise Unreadable(f"{failure}; without quotes, {problem}", failure.hint) from problem
    if quoted is None:
        if standard and failure is not None and any('""' in cell for row in plain[1] for cell in row):
            raise failure  # some cells are quoted, others contain quotes: neither interpretation fits all
        return plain
    return quoted if _looks_written(plain, quoted) else plain


def _plain(text: str, delimiter: str) -> _Read:
    """Rows of a text in which quotes are ordinary characters."""
    found = (
        (number, line.removesuffix("\r").split(delimiter)) for number, line in enumerate(text.split("\n"), 1)
    )
    return _checked((number, row) for number, row in found if row != [""])


def _quoted(text: str, delimiter: str) -> _Read:
    """Rows of a text whose quoted cells all open and close according to RFC 4180."""

    def rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        line = 1
        while True:
            try:
                row = next(reader, None)
            except csv.Error as problem:
                raise Unreadable(
                    f"line {line}: the quotes cannot be read ({problem})",
                    'write a quoted cell as "a ""word"" in it"',
                ) from problem
            if row is None:
                return
            if row:
                yield line, row
            line = reader.line_num + 1

    with _long_cells():
        return _checked(rows())


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(_CELL_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _checked(found: Iterator[tuple[int, list[str]]]) -> _Read:
    lines: list[int] = []
    rows: list[list[str]] = []
    for line, row in found:
        if rows and len(row) != len(rows[0]):
            raise Unreadable(
                f"Expected {len(rows[0])} columns as in the header, found {len(row)} in line {line}"
            )
        lines.append(line)
        rows.append(row)
    return lines, rows


def _looks_written(plain: _Read, quoted: _Read) -> bool:
    """Whether a text that can be read both ways looks like the output of a writer that quotes cells.

    Such a writer doubles quotes inside cells, and quotes either the cells that need it (those with a
    delimiter, a quote or a line break) or all cells of a column that are not numbers.
    """
    if len(plain[0]) != len(quoted[0]):
        return not _merges_rows(plain, quoted)
    for column in range(len(quoted[1][0])):
        raw = [row[column] for row in plain[1][1:]]
        enclosed = [len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in raw]
        if any('"' in cell for cell, quotes in zip(raw, enclosed, strict=True) if not quotes):
            return False
        whole = all(quotes or _NUMBER.fullmatch(cell) for cell, quotes in zip(raw, enclosed, strict=True))
        needed = all(
            not quotes or re.search(r'[",;|\t\r\n]|^\s|\s$|^$', row[column])
            for row, quotes in zip(quoted[1][1:], enclosed, strict=True)
        )
        if not whole and not needed:
            return False
    return True


def _merges_rows(plain: _Read, quoted: _Read) -> bool:
    """Whether quoted cells contain lines that look like separate rows.

    This is the case if, in some column after the first, all lines have numbers, or these lines have values
    that occur in other rows.
    """
    begin = set(quoted[0])
    inner = [line not in begin for line in plain[0]]
    # A row followed by an inner line is the first of the rows that it would become.
    merged = [here or after for here, after in zip(inner, [*inner[1:], False], strict=True)]
    swallowed = [row for row, one in zip(plain[1], merged, strict=True) if one]
    others = [row for row, one in zip(plain[1][1:], merged[1:], strict=True) if not one]
    return any(
        {row[column] for row in swallowed} <= {row[column] for row in others}
        or all(row[column].isdecimal() for row in plain[1][1:])
        for column in range(1, len(plain[1][0]))
    )
