"""`cook schema`: the JSON Schema of a recipe, for editors and other tools."""

from __future__ import annotations

import argparse
from typing import Any

from cook.cli import arguments, screen

NAME = "schema"


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    arguments.verb(
        subparsers, NAME, "print the JSON Schema of a recipe", "Editors complete and check recipes with it."
    )


def call(args: argparse.Namespace) -> int:
    """Print the schema, the passes of other packages included."""
    from cook.recipe.schema.build import schema

    screen.say_json(schema())
    return 0
