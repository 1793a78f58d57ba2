"""What the command prints: results on stdout, one screen of error on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import textwrap
import traceback
from typing import Any

from cook.errors import CookError, RecipeErrors
from cook.report.draw import width

MOST = 12
"""Mistakes of one recipe that are shown: more would not fit on one screen."""


def prepare() -> None:
    """Make stdout and stderr take every character; what the terminal cannot show becomes `?`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """Print to stdout at once. When its reader has gone (`cook run | head`) the work goes on unheard."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_json(value: Any) -> None:
    """Print a JSON value."""
    say(json.dumps(value, indent=2))


def fail(error: BaseException, *, debug: bool, most: int | None = MOST) -> int:
    """Print `error` to stderr and give the exit code.

    Args:
        debug: with its traceback.
        most: mistakes of a recipe that are shown; None shows all.
    """
    if debug:
        complain("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, CookError):
        complain(wrapped(f"error: {_message(error, most)}"))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        complain("error: interrupted")
        return 1
    complain(f"error: {type(error).__name__}: {error}".rstrip(": "))
    if not debug:
        complain("  run again with --debug for the traceback")
    return 1


def _message(error: CookError, most: int | None) -> str:
    if not isinstance(error, RecipeErrors):
        return str(error)
    if len(error.problems) == 1:
        return str(error.problems[0])
    lines = [error.message, *map(str, error.problems[:most])]
    if most is not None and len(error.problems) > most:
        lines.append(f"and {len(error.problems) - most} more: `cook validate` tells them all")
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """`text` in lines that fit the terminal, or COLUMNS; as it is where there is neither.

    Lines are broken between words and keep their indent; a longer word, such as a path, stays whole.
    """
    if not (sys.stderr.isatty() or os.environ.get("COLUMNS", "").isdigit()):
        return text
    room = width()
    lines: list[str] = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        more = textwrap.wrap(
            line, room, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False
        )
        lines += more if len(line) > room else [line]
    return "\n".join(lines)


def complain(text: str) -> None:
    """Print to stderr, whose reader may have gone."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)
