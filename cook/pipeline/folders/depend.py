"""A model that is another recipe's output: built when it is missing or stale, as make would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from cook.pipeline.folders.output import finished
from cook.recipe import Recipe, load_recipe
from cook.report import Report


def built(recipe: Recipe, run: Callable[[Recipe], Any], say: Callable[[str], None]) -> Recipe:
    """The recipe with `model.recipe` replaced by the folder that it gives, which `run` builds if need be.

    Raises:
        CookError: recipes need each other in a circle, or a folder to build is there and not cook's.
    """
    *needed, _ = chain(recipe)
    for each in needed:
        if reason := stale(each):
            output = Path(each.output.path)
            if output.exists() and not (output / "report.json").is_file():
                hint = "choose another output.path for that recipe, or move the folder away"
                raise each.error("output.path", f"{output} was not written by cook", hint)
            say(f"building {each.output.path} from {each.name} first: {reason}")
            run(each)
    return using(recipe, needed[-1]) if needed else recipe


def chain(recipe: Recipe) -> list[Recipe]:
    """All recipes that `recipe` rests on through `model.recipe`, what comes first first, and itself last.

    Raises:
        CookError: they need each other in a circle.
    """
    found, files = [recipe], list[Path]()
    while (source := found[-1].model.recipe) is not None:
        file = Path(source).resolve()
        if file in files:
            circle = " -> ".join(path.name for path in (*files, file))
            raise recipe.error("model.recipe", f"recipes need each other in a circle: {circle}")
        files.append(file)
        found.append(load_recipe(file))
    return found[::-1]


def using(recipe: Recipe, needed: Recipe) -> Recipe:
    """The recipe with the output of `needed` as its model."""
    return recipe.replace(model={"recipe": None, "path": needed.output.path})


def stale(recipe: Recipe) -> str | None:
    """Why the output of a recipe must be built, or None when it is up to date.

    It is stale when another recipe made it, or when a local input, or a model that it rests on, is newer.
    """
    if not Path(recipe.output.path).exists():
        return "it is missing"
    report = finished(recipe)
    if report is None:
        return "it was not made by this recipe"
    for path in _inputs(recipe):
        if path.stat().st_mtime > _made(report):
            return f"{path.name} is newer"
    if recipe.model.recipe is not None:
        below = load_recipe(recipe.model.recipe)
        made = finished(below)
        if made is None or _made(made) > _made(report):
            return f"{below.output.path} is newer"
    return None


def protect(recipe: Recipe) -> None:
    """Refuse an output that is, or holds, something that the run reads: replacing it would destroy that.

    Raises:
        CookError: it would.
    """
    output = Path(recipe.output.path).resolve()
    needed = [Path(each.output.path) for each in chain(recipe)[:-1]]
    for source in (*_named(recipe), *needed):
        if source.resolve().is_relative_to(output) and not output.is_file():
            where = "is" if source.resolve() == output else "holds"
            raise recipe.error(
                "output.path",
                f"{output} {where} {source}, which the run reads",
                "an output never replaces its own source: choose another path",
            )


def _made(report: Report) -> float:
    return datetime.fromisoformat(report.created).timestamp()


def _inputs(recipe: Recipe) -> Iterator[Path]:
    """The local files that a recipe reads."""
    made = Path(recipe.output.path).resolve()
    for path in _named(recipe):
        for each in path.rglob("*") if path.is_dir() else (path,):
            # What runs leave beside the data is none of it.
            hidden = path.is_dir() and any(part.startswith(".") for part in each.relative_to(path).parts)
            if not hidden and not each.resolve().is_relative_to(made):
                yield each


def _named(recipe: Recipe) -> Iterator[Path]:
    """The local files and folders that a recipe names as its inputs."""
    data = recipe.data
    named = [
        *(recipe.model.path, recipe.model.tokenizer),
        *((recipe.student.path,) if recipe.student else ()),
        *((data.path, data.train, data.validation) if data else ()),
        *((data.augment.model,) if data and data.augment else ()),
        *(teacher.path for teacher in recipe.teachers),
    ]
    for value in named:
        for item in value if isinstance(value, tuple) else (value,):
            path = Path(item) if isinstance(item, str) else None
            if path and path.is_absolute() and path.exists():
                yield path
