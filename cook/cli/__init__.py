"""The command `cook`: one file a verb. Nothing heavy is imported before a verb is called."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cook import __version__
from cook.cli import ablate, convert, evaluate, passes, plan, report, run, schema, screen, slice, validate

VERBS = {
    verb.NAME: verb
    for verb in (run, validate, plan, evaluate, slice, report, schema, passes, ablate, convert)
}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    command = argparse.ArgumentParser(
        prog="cook",
        description="Make a Hugging Face model smaller and faster from one recipe.",
        epilog="Exit codes: 0 done, 1 the run failed, 2 the recipe or its inputs are wrong.",
    )
    command.add_argument("--version", action="version", version=f"cook {__version__}")
    command.add_argument("--debug", action="store_true", help="show tracebacks; also after the verb")
    subparsers = command.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS.values():
        verb.add(subparsers)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code; `argv` defaults to the process's arguments.

    Raises:
        SystemExit: from argparse, with 0 after `--help` and `--version` and 2 for bad arguments.
    """
    screen.prepare()
    args = parser().parse_args(argv)
    try:
        code: int = VERBS[args.verb].call(args)
    except (Exception, KeyboardInterrupt) as error:
        most = None if args.verb == validate.NAME else screen.MOST
        return screen.fail(error, debug=args.debug, most=most)
    return code
