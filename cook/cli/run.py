"""`cook run RECIPE`: train, compress, save, verify, report."""

from __future__ import annotations

import argparse
import os
from typing import Any

from cook.cli import arguments, screen
from cook.say import silent

NAME = "run"


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    parser = arguments.verb(subparsers, NAME, "do what a recipe says and write the output folder")
    arguments.recipe(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--force", action="store_true", help="replace an output that is already there")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def call(args: argparse.Namespace) -> int:
    """Run the recipe and print its report. Of several processes only the first speaks."""
    from cook.recipe import load_recipe, peek

    recipe = load_recipe(args.recipe, args.overrides)
    peek.check(recipe)
    # Only now what takes seconds to import.
    from torch import distributed

    from cook.pipeline import run
    from cook.report import terminal

    quiet = args.quiet or os.environ.get("RANK", "0") != "0"
    say = silent if quiet else screen.say
    report = run(recipe, resume=args.resume, force=args.force, say=say, progress=not quiet)
    say(f"\n{terminal(report)}")
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    return 0
