"""`cook report FOLDER`: print the tables of a run again."""

from __future__ import annotations

import argparse
from typing import Any

from cook.cli import arguments, screen

NAME = "report"


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    parser = arguments.verb(subparsers, NAME, "print the report of a run again")
    parser.add_argument("folder", metavar="FOLDER", help="what `cook run` wrote, or a report.json")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print report.json")
    form.add_argument("--markdown", action="store_true", help="print markdown tables")


def call(args: argparse.Namespace) -> int:
    """Draw the tables from report.json alone."""
    from cook.report import Report, markdown, terminal

    report = Report.read(args.folder)
    if args.json:
        screen.say_json(report.to_dict())
    else:
        screen.say(markdown(report) if args.markdown else terminal(report))
    return 0
