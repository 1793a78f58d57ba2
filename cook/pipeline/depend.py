"""A model that is another recipe's output: built when it is missing or stale, as make would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from cook.pipeline.output import finished
from cook.recipe import Recipe, load_recipe


def built(recipe: Recipe, run: Callable[[Recipe], Any], say: Callable[[str], None]) -> Recipe:
    """The recipe with `model.recipe` replaced by the folder that it gives, which `run` builds if need be.

    Raises:
        CookError: recipes depend on each other in a circle.
    """
    return _built(recipe, run, say, ())


def _built(
    recipe: Recipe, run: Callable[[Recipe], Any], say: Callable[[str], None], above: tuple[Path, ...]
) -> Recipe:
    source = recipe.model.recipe
    if source is None:
        return recipe
    file = Path(source).resolve()
    if file in above:
        circle = " -> ".join(path.name for path in (*above, file))
        raise recipe.error("model.recipe", f"recipes need each other in a circle: {circle}")
    needed = _built(load_recipe(file), run, say, (*above, file))
    folder = Path(needed.output.path)
    if reason := stale(needed):
        say(f"building {folder} from {file.name} first: {reason}")
        run(needed)
    task = recipe.model.task or needed.model.task
    return load_recipe(recipe, ["model.recipe=null", f"model.path={folder}", f"model.task={task}"])


def stale(recipe: Recipe) -> str | None:
    """Why the output of a recipe must be built, or None when it is up to date.

    It is stale when another recipe made it, or when a local input is newer than it.
    """
    folder = Path(recipe.output.path)
    if not folder.exists():
        return "it is missing"
    report = finished(recipe)
    if report is None:
        return "it was not made by this recipe"
    made = datetime.fromisoformat(report.created).timestamp()
    for path in _inputs(recipe):
        if path.stat().st_mtime > made:
            return f"{path.name} is newer"
    return None


def _inputs(recipe: Recipe) -> Iterator[Path]:
    """The local files that a recipe reads."""
    data = recipe.data
    named = [recipe.model.path, *((data.path, data.train, data.validation) if data else ())]
    for value in named:
        for item in value if isinstance(value, tuple) else (value,):
            path = Path(item) if item else None
            if path and path.is_absolute() and path.exists():
                yield from (path.rglob("*") if path.is_dir() else (path,))
