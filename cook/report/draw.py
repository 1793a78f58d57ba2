"""Grids of text: aligned columns for a terminal, pipes for markdown. Plain characters, no colour."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 100
GAP = "  "
SHORTEST = 8

Row = Sequence[str]


def clean(text: str) -> str:
    """`text` on one line and without control characters: names come from files that others wrote."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def grid(
    rows: Sequence[Row], *, align: str, notes: Mapping[int, str] | None = None, width: int = WIDTH
) -> str:
    """Columns for a terminal, the first row being the head.

    Args:
        rows: the head and the rows, each of the same length.
        align: "<" or ">" for each column.
        notes: by the row's index, text that is wrapped under the row.
        width: the first column gives way, down to 8 letters, so that no line is longer.
    """
    rows = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    over = sum(widths) + len(GAP) * (len(widths) - 1) - width
    widths[0] = max(min(SHORTEST, widths[0]), widths[0] - max(0, over))
    rule = "─" * (sum(widths) + len(GAP) * (len(widths) - 1))
    lines = []
    for index, row in enumerate(rows):
        cells = [shorten(row[0], widths[0]), *row[1:]]
        pairs = zip(cells, align, widths, strict=True)
        lines.append(GAP.join(f"{cell:{side}{room}}" for cell, side, room in pairs).rstrip())
        if index == 0:
            lines.append(rule)
        if notes and notes.get(index):
            lines += wrap(notes[index], indent="    ", width=width)
    return "\n".join(lines)


def pipes(rows: Sequence[Row], *, align: str) -> str:
    """The same as a markdown table."""
    rule = ["---" if side == "<" else "---:" for side in align]
    lines = [[_escaped(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [lines[0], rule, *lines[1:]])


def shorten(text: str, width: int) -> str:
    """`text`, its middle cut out when it is longer than `width`: both ends of a name tell it apart."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def wrap(text: str, *, indent: str = "", width: int = WIDTH) -> list[str]:
    """`text` as lines of at most `width`, each indented."""
    return textwrap.wrap(clean(text), width, initial_indent=indent, subsequent_indent=indent)


def _escaped(cell: str) -> str:
    text = clean(cell).strip().replace("\\", "\\\\")
    for letter in "|<>*_`[]":
        text = text.replace(letter, f"\\{letter}")
    return text
