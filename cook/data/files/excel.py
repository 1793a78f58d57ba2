"""Reads Excel workbooks as tables; requires openpyxl (`pip install cook-compress[excel]`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cook.data.files.encodings import Unreadable


def read(path: Path) -> tuple[dict[str, list[Any]], list[int]]:
    """The columns of the only non-empty sheet, and the number of each row as in Excel.

    The first row names the columns; empty rows are skipped. A column is numeric if all its cells are, else
    text; an empty cell is None, and a formula is read as its saved value.

    Raises:
        Unreadable: openpyxl is not installed, the file is not a workbook, or several sheets have cells.
    """
    try:
        import openpyxl
    except ImportError as problem:
        hint = "pip install 'cook-compress[excel]', or save the table as csv"
        raise Unreadable("an Excel file needs openpyxl, which is not installed", hint) from problem
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as problem:  # zipfile, XML and key errors, depending on the actual file type
        raise Unreadable(f"this is no Excel workbook (.xlsx): {problem}") from problem
    try:
        sheets = {sheet.title: _filled(sheet) for sheet in book.worksheets}
    finally:
        book.close()
    sheets = {title: rows for title, rows in sheets.items() if rows}
    if len(sheets) != 1:
        found = f"several sheets have cells ({', '.join(sheets)})" if sheets else "no sheet has cells"
        raise Unreadable(f"{found}; expected one table", "save the sheet with the data in a file of its own")
    (rows,) = sheets.values()
    width = max(index for _, row in rows for index, cell in enumerate(row, 1) if cell is not None)
    names = ["" if name is None else str(name) for name in rows[0][1][:width]]
    if len(names) < width or "" in names or len(set(names)) < len(names):
        message = f"row {rows[0][0]} must name each column once, and has {names}"
        raise Unreadable(message, "give every column that has cells a name of its own")
    cells = [[*row[:width], *[None] * (width - len(row))] for _, row in rows[1:]]
    columns = {name: _column([row[index] for row in cells]) for index, name in enumerate(names)}
    return columns, [number for number, _ in rows[1:]]


def _filled(sheet: Any) -> list[tuple[int, tuple[Any, ...]]]:
    rows = enumerate(sheet.iter_rows(values_only=True), 1)
    return [(number, row) for number, row in rows if any(cell is not None for cell in row)]


def _column(cells: list[Any]) -> list[Any]:
    filled = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in filled):
        return cells
    return [None if cell is None else str(cell) for cell in cells]
