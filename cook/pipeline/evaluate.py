"""The metrics of a saved model on a recipe's validation data."""

from __future__ import annotations

from pathlib import Path

from cook.model import load
from cook.pipeline.environment import accelerator
from cook.pipeline.inputs import load_model, read_data
from cook.recipe import Recipe, load_recipe
from cook.train.evaluate import evaluate as measure


def evaluate(folder: str | Path, recipe: Recipe) -> dict[str, float]:
    """Load `folder` as the recipe's model and evaluate it on the recipe's validation split.

    Integer weights stay integers: what is measured is what a user of the folder gets.

    Raises:
        CookError: the folder is no model, or the data are not there.
    """
    changed = [
        "model.config=null",
        "model.recipe=null",
        "model.tokenizer=null",
        f"model.path={Path(folder).absolute()}",
    ]
    recipe = load_recipe(recipe, changed)
    data = read_data(recipe, _silent, splits=("validation",))
    model = load_model(recipe, data, _silent)
    processor = load.load_processor(recipe.model, data.task.processor) or data.task.plain_processor()
    rows = data.task.prepare(data.raw["validation"], processor)
    device = accelerator(recipe.train).device
    model.to(device)
    return measure(
        model, rows, data.task, batch_size=recipe.eval.batch_size, limit=recipe.eval.limit, device=device
    )


def _silent(line: str) -> None:
    """Say nothing."""
