"""One run for each pass left out: what changed because of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cook.errors import CookError
from cook.pipeline.folders.output import finished, waits
from cook.pipeline.run import run
from cook.recipe import Recipe


def ablate(
    recipe: Recipe, *, force: bool = False, say: Callable[[str], None] = print, progress: bool = True
) -> list[dict[str, Any]]:
    """Run the recipe whole and once without each of its passes, each into a folder of its own.

    The folders are `<output>-ablation/all` and `<output>-ablation/without-<id>`. A run that is finished
    there is not repeated unless `force`.

    Returns:
        A row a run: `left_out` (None for the whole), `metrics`, `bytes`, `zeros`, `sparsity`.

    Raises:
        CookError: the recipe has no pass to leave out, or a run fails.
    """
    if not recipe.passes:
        raise CookError("there is no pass to leave out", where=recipe.name)
    rows = []
    for left_out in (None, *range(len(recipe.passes))):
        one = _without(recipe, left_out)
        name = None if left_out is None else recipe.passes[left_out].id
        say(f"without {name}" if name else "with every pass")
        report = None if force else finished(one)
        if report is None:
            report = run(one, resume=not force and waits(one), force=force, say=say, progress=progress)
        after = report.model.after
        row = {"left_out": name, "metrics": after.metrics, "bytes": after.bytes}
        rows.append({**row, "zeros": after.zeros, "sparsity": after.sparsity})
    return rows


def _without(recipe: Recipe, left_out: int | None) -> Recipe:
    folder = Path(recipe.output.path)
    name = "all" if left_out is None else f"without-{recipe.passes[left_out].id}"
    place = folder.with_name(f"{folder.name}-ablation") / name
    return recipe.replace(without=left_out, output={"path": str(place)})
