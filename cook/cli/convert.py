"""`cook convert CONFIG`: the recipe that a BMCook config asks for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cook.cli import arguments, screen

NAME = "convert"


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    detail = "What differs is told in its comments."
    parser = arguments.verb(subparsers, NAME, "print the recipe that a BMCook config asks for", detail)
    parser.add_argument("config", metavar="CONFIG", help="a BMCook config, JSON")
    parser.add_argument("-o", "--output", metavar="RECIPE", help="write the recipe to this file")
    parser.add_argument("--force", action="store_true", help="replace a file that is already there")


def call(args: argparse.Namespace) -> int:
    """Print or write the recipe; a key that has no counterpart is an error."""
    from cook.errors import CookError
    from cook.recipe import bmcook
    from cook.recipe.recipe import load_document
    from cook.recipe.text import parse

    document = parse.read(args.config)
    if not bmcook.is_bmcook(document.value):
        hint = f"such a config has one of the sections {', '.join(bmcook.KEYS)}, and no version or passes"
        raise CookError("this is no config of BMCook", where=args.config, hint=hint)
    load_document(bmcook.recipe_document(document), Path(args.config).absolute().parent, partial=True)
    made = bmcook.to_yaml(bmcook.convert(document.value, document.marks, document.name), document.name)
    if args.output is None:
        screen.say(made.rstrip())
        return 0
    try:
        with open(args.output, "w" if args.force else "x", encoding="utf-8") as file:
            file.write(made)
    except FileExistsError:
        raise CookError("there is a file already", where=args.output, hint="--force replaces it") from None
    except OSError as error:
        raise CookError(f"the recipe cannot be written: {error.strerror}", where=args.output) from None
    screen.say(f"{args.output} is written")
    return 0
