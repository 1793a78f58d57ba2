"""Arguments that several verbs take."""

from __future__ import annotations

import argparse
from typing import Any


def verb(subparsers: Any, name: str, summary: str, detail: str = "") -> argparse.ArgumentParser:
    """A parser for a verb. `--debug` after the verb must not undo one before it, hence SUPPRESS."""
    text = f"{summary[0].upper()}{summary[1:]}.{' ' if detail else ''}{detail}"
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=summary, description=text)
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def recipe(parser: argparse.ArgumentParser) -> None:
    """The recipe and what is changed in it."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML or JSON file")
    overrides(parser)


def overrides(parser: argparse.ArgumentParser) -> None:
    """`--set`, repeatable."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change the recipe: train.epochs=1, 'passes[0].temperature=2'; may be repeated",
    )
