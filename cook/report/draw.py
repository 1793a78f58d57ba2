"""Grids of text: aligned columns for a terminal, pipes for markdown. Plain characters, no colour.

Nothing is wider than the terminal, and a number is never parted from its unit.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

WIDEST, NARROWEST, USUAL = 100, 40, 80
GAP = "  "
SHORTEST = 8

Row = Sequence[str]

JOINED = re.compile(r"(?<=[\d→±]) (?=\S)|(?<=\S) (?=[→±])")
"""The spaces in "1,234 rows", "0.0 → 58.9 %" and "± 3.1 %", where no line is broken."""
HARD = "\N{NO-BREAK SPACE}"


def width() -> int:
    """Columns of the terminal (or of COLUMNS), from 40 to 100; 80 where there is no terminal."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((USUAL, 24)).columns))


def clean(text: str) -> str:
    """`text` on one line and without control characters: names come from files that others wrote."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def grid(
    rows: Sequence[Row], *, align: str, notes: Mapping[int, str] | None = None, width: int | None = None
) -> str:
    """Columns for a terminal, the first row being the head.

    Args:
        rows: the head and the rows, each of the same length.
        align: "<" or ">" for each column.
        notes: by the row's index, text that is wrapped under the row.
        width: that no line is longer than; None takes the terminal's. The first column gives way, down to
            8 letters; columns that do not fit then follow in a second grid below, with the first one again.
    """
    limit = _limit(width)
    rows = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    least = min(SHORTEST, widths[0])
    fits = len(widths)
    while fits > 2 and least + sum(widths[1:fits]) + len(GAP) * (fits - 1) > limit:
        fits -= 1
    if fits < len(widths):
        first = [row[:fits] for row in rows]
        rest = [[row[0], *row[fits:]] for row in rows]
        return "\n\n".join(
            [
                grid(first, align=align[:fits], notes=notes, width=limit),
                grid(rest, align=align[0] + align[fits:], width=limit),
            ]
        )
    over = sum(widths) + len(GAP) * (len(widths) - 1) - limit
    widths[0] = max(least, widths[0] - max(0, over))
    rule = "─" * (sum(widths) + len(GAP) * (len(widths) - 1))
    lines = []
    for index, row in enumerate(rows):
        cells = [shorten(row[0], widths[0]), *row[1:]]
        pairs = zip(cells, align, widths, strict=True)
        lines.append(GAP.join(f"{cell:{side}{room}}" for cell, side, room in pairs).rstrip())
        if index == 0:
            lines.append(rule)
        if notes and notes.get(index):
            lines += wrap(notes[index], indent="    ", width=limit)
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


def wrap(text: str, *, indent: str = "", width: int | None = None) -> list[str]:
    """`text` as lines of at most `width` (None: the terminal's), each indented, broken between words."""
    lines = textwrap.wrap(
        JOINED.sub(HARD, clean(text)),
        _limit(width),
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    return [line.replace(HARD, " ") for line in lines]


def _limit(asked: int | None) -> int:
    return width() if asked is None else asked


def _escaped(cell: str) -> str:
    text = clean(cell).strip().replace("\\", "\\\\")
    for letter in "|<>*_`[]":
        text = text.replace(letter, f"\\{letter}")
    return text
