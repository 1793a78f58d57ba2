"""`cook validate RECIPE`: read a recipe and say what is wrong with it; no model is read."""

from __future__ import annotations

import argparse
from typing import Any

from cook.cli import arguments, screen

NAME = "validate"


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    parser = arguments.verb(subparsers, NAME, "check a recipe; reads no model and no data")
    arguments.recipe(parser)


def call(args: argparse.Namespace) -> int:
    """Say that the recipe is valid; every mistake is an error."""
    from cook.recipe import load_recipe

    count = len(load_recipe(args.recipe, args.overrides).passes)
    screen.say(f"{args.recipe} is valid: {count} {'pass' if count == 1 else 'passes'}")
    return 0
