"""`cook eval FOLDER`: the metrics of a saved model on the recipe's validation data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cook.cli import arguments, screen
from cook.errors import CookError

NAME = "eval"


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    parser = arguments.verb(subparsers, NAME, "evaluate a model folder on the validation data of a recipe")
    parser.add_argument("folder", metavar="FOLDER", help="what `cook run` wrote, or any model folder")
    parser.add_argument("--recipe", metavar="RECIPE", help="default: FOLDER/recipe.yaml")
    arguments.overrides(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def call(args: argparse.Namespace) -> int:
    """Print a line a metric."""
    from cook.pipeline import evaluate
    from cook.report import units

    metrics = evaluate(args.folder, _recipe(args), args.overrides, say=screen.complain, progress=True)
    if args.json:
        screen.say_json(metrics)
    else:
        room = max(map(len, metrics), default=0)
        for name, value in metrics.items():
            screen.say(f"{name:<{room}}  {units.metric(name, value)}")
    return 0


def _recipe(args: argparse.Namespace) -> Path:
    """The recipe that was named, or the one in the folder.

    Raises:
        CookError: when the folder is none, or holds no recipe and none was named.
    """
    folder = Path(args.folder)
    if not folder.is_dir():
        raise CookError("is not a folder", where=args.folder, hint="give the output folder of `cook run`")
    if args.recipe is not None:
        return Path(args.recipe)
    if not (folder / "recipe.yaml").is_file():
        hint = "say which data to use: --recipe RECIPE"
        raise CookError("there is no recipe.yaml in the folder", where=args.folder, hint=hint)
    return folder / "recipe.yaml"
