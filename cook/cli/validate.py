"""`cook validate RECIPE`: say what is wrong with a recipe and its data files; no model is read."""

from __future__ import annotations

import argparse
from typing import Any

from cook.cli import arguments, screen

NAME = "validate"


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    parser = arguments.verb(
        subparsers, NAME, "check a recipe and the data files that it names; reads no model"
    )
    arguments.recipe(parser)


def call(args: argparse.Namespace) -> int:
    """Say that the recipe is valid; every mistake is an error."""
    from cook.recipe import load_recipe, peek

    recipe = load_recipe(args.recipe, args.overrides)
    unseen, count = peek.check(recipe), len(recipe.passes)
    screen.say(f"{args.recipe} is valid: {count} {'pass' if count == 1 else 'passes'}")
    for line in (*recipe.notes, *unseen):
        screen.say(f"  {line}")
    return 0
