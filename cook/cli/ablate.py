"""`cook ablate RECIPE`: one run for each pass left out: what changed because of it."""

from __future__ import annotations

import argparse
from typing import Any

from cook.cli import arguments, screen

NAME = "ablate"


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    parser = arguments.verb(subparsers, NAME, "run a recipe once for each pass left out and compare")
    arguments.recipe(parser)
    parser.add_argument("--force", action="store_true", help="replace outputs that are already there")


def call(args: argparse.Namespace) -> int:
    """Run them all and print a row a run."""
    from cook.recipe import load_recipe, peek

    recipe = load_recipe(args.recipe, args.overrides)
    peek.check(recipe)
    # Only now what takes seconds to import.
    from cook.pipeline import ablate
    from cook.report import ablation_table

    rows = ablate(recipe, force=args.force, say=screen.say)
    screen.say(f"\n{ablation_table(rows)}")
    return 0
