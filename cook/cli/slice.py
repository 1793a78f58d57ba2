"""`cook slice FOLDER --layers 4`: a model of fewer layers, cut out of a whole one and measured beside it."""

from __future__ import annotations

import argparse
from typing import Any

from cook.cli import arguments, screen

NAME = "slice"
CHOICES = ("alternate", "top", "bottom")


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    parser = arguments.verb(
        subparsers,
        NAME,
        "cut a model of fewer layers out of a model folder, measure and write it",
        "Nothing is trained: prune.layerdrop prepares a model for it.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="what `cook run` wrote, or any model folder")
    parser.add_argument(
        "--layers",
        action="append",
        required=True,
        type=_depth,
        metavar="COUNT|LIST",
        help="how many layers stay (4), or which ones (0,2,4; a comma behind a single one, --layers=-1, for"
        " the last); may be repeated",
    )
    parser.add_argument(
        "--choose",
        choices=CHOICES,
        default=CHOICES[0],
        help="which layers of a COUNT go: every k-th (alternate, the default), the last or the first ones",
    )
    parser.add_argument("--out", metavar="FOLDER", help="default: beside FOLDER, such as FOLDER-4-layers")
    parser.add_argument("--dry", action="store_true", help="measure only, write nothing")
    parser.add_argument("--force", action="store_true", help="replace folders that are already there")
    parser.add_argument("--recipe", metavar="RECIPE", help="what to measure on; default: FOLDER/recipe.yaml")
    arguments.overrides(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def call(args: argparse.Namespace) -> int:
    """Print a row for the whole model and one for each slice."""
    from cook.pipeline import slice_folder
    from cook.report import slice_table

    slices = slice_folder(
        args.folder,
        args.layers,
        choose=args.choose,
        out=args.out,
        write=not args.dry,
        force=args.force,
        recipe=args.recipe,
        overrides=args.overrides,
        say=screen.complain if args.json else screen.say,
    )
    rows = [each.to_dict() for each in slices]
    if args.json:
        screen.say_json(rows)
    else:
        screen.say(f"\n{slice_table(rows)}")
    return 0


def _depth(text: str) -> int | tuple[int, ...]:
    """`4` as a number, `0,2,4` and `4,` as the numbers of layers."""
    try:
        if "," in text:
            return tuple(int(number) for number in text.removesuffix(",").split(","))
        if (count := int(text)) < 1:
            raise ValueError
    except ValueError:
        message = f"{text!r} is neither a number of layers (4) nor a list of layers (0,2,4)"
        raise argparse.ArgumentTypeError(message) from None
    return count
