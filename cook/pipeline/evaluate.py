"""The metrics of a saved model on a recipe's validation data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from cook.failures import evaluation_memory_errors
from cook.model.hub import load
from cook.pipeline import tokenizer_check
from cook.pipeline.inputs import load_model, read_data
from cook.pipeline.prepare import RunContext, prepare
from cook.recipe import Recipe, load_recipe
from cook.say import Say, silent
from cook.sections import Cut
from cook.train.evaluate import evaluate as measure


def evaluate(
    folder: str | PathLike[str],
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    *,
    say: Say = silent,
    progress: bool = False,
) -> dict[str, float]:
    """Load `folder` as a user of it would, and evaluate it on the recipe's validation split.

    Integer weights stay integers and activations are rounded; everything else is computed in float32, as
    in the report of the run.

    Args:
        folder: of a model, from cook or not.
        recipe: for the task, the validation data and the eval section; what else it names need not be there.
        overrides: as after `--set`.
        say: takes a line for everything unusual about the data or the tokenizer.
        progress: draw a bar if it takes longer than some seconds.

    Raises:
        CookError: the folder is no model, the data are not there, or `model.tokenizer` is not the folder's.
    """
    opened = open_folder(folder, recipe, overrides, say=say)
    assert opened.task is not None
    size, limit = opened.evaluation.batch_size, opened.evaluation.limit
    opened.model.to(opened.accelerator.device)
    with evaluation_memory_errors(size):
        return measure(
            opened.model,
            opened.rows["validation"],
            opened.task,
            batch_size=size,
            limit=limit,
            device=opened.accelerator.device,
            progress=progress,
        )


def open_folder(
    folder: str | PathLike[str],
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    *,
    say: Say = silent,
) -> RunContext:
    """The model in `folder` and the recipe's validation data, ready for evaluation; as for `evaluate`."""
    place = json.dumps(str(Path(folder).absolute()), ensure_ascii=False)
    unused = (
        *("model.config", "model.recipe", "model.revision", "model.head", "student"),
        *("teacher", "train", "data.augment", "passes"),
    )
    ours = [*(f"{key}=null" for key in unused), f"model.path={place}"]
    recipe = _without_train(recipe, ["model.tokenizer=null", *overrides, *ours])
    data = read_data(recipe, silent, splits=("validation",), warn=say)
    model = load_model(recipe, data, silent, integers=True)
    processor = load.load_processor(recipe.model, data.task.processor) or data.task.plain_processor()
    tokenizer_check.check(recipe, model.config, processor, data.texts(), say)
    return prepare(recipe, model, data, processor, Accelerator())


def _without_train(recipe: Any, overrides: Sequence[str]) -> Recipe:
    """The recipe without its training data, unless validation is cut out of them."""
    without = [*overrides, "data.train=null"]
    data = load_recipe(recipe, without, partial=True).data
    cut = data is not None and isinstance(data.validation, Cut)
    return load_recipe(recipe, overrides if cut else without)
