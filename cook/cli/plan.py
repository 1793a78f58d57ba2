"""`cook plan RECIPE`: what every pass would touch and what would come out, without loading weights."""

from __future__ import annotations

import argparse
from typing import Any

from cook.cli import arguments, screen

NAME = "plan"


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    parser = arguments.verb(
        subparsers, NAME, "show what a recipe would touch, and the sizes; loads no weights, writes nothing"
    )
    arguments.recipe(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def call(args: argparse.Namespace) -> int:
    """Print the plan; conflicts between passes are errors."""
    from cook.recipe import load_recipe, peek

    recipe = load_recipe(args.recipe, args.overrides)
    peek.check(recipe)
    # Only now what takes seconds to import.
    from cook.pipeline import plan
    from cook.report import plan_table

    made = plan(recipe)
    value = {
        "before": dict(made.before),
        "after": dict(made.after),
        "rows": [dict(row) for row in made.rows],
        "tokens": made.tokens,
    }
    if args.json:
        screen.say_json(value)
    else:
        screen.say(plan_table(value))
    return 0
