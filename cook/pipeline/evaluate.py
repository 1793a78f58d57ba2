"""The metrics of a saved model on a recipe's validation data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from cook.data.tasks import Task
from cook.failures import evaluation_memory_errors
from cook.model.hub import load
from cook.pipeline import tokenizer_check
from cook.pipeline.inputs import load_model, read_data
from cook.recipe import Recipe, load_recipe
from cook.say import Say, silent
from cook.sections import Cut
from cook.train.evaluate import evaluate as measure


@dataclass(frozen=True)
class Opened:
    """A folder and the validation data that a recipe evaluates it on.

    Attributes:
        rows: of the validation split, prepared.
        processor: that prepared them.
        recipe: with the folder as its model.
    """

    model: PreTrainedModel
    rows: Dataset
    task: Task
    processor: Any | None
    recipe: Recipe
    device: torch.device


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
    size, limit = opened.recipe.eval.batch_size, opened.recipe.eval.limit
    with evaluation_memory_errors(size):
        return measure(
            opened.model,
            opened.rows,
            opened.task,
            batch_size=size,
            limit=limit,
            device=opened.device,
            progress=progress,
        )


def open_folder(
    folder: str | PathLike[str],
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    *,
    say: Say = silent,
) -> Opened:
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
    rows = data.task.prepare(data.raw["validation"], processor)
    device = Accelerator().device
    model.to(device)
    return Opened(model, rows, data.task, processor, recipe, device)


def _without_train(recipe: Any, overrides: Sequence[str]) -> Recipe:
    """The recipe without its training data, unless validation is cut out of them."""
    without = [*overrides, "data.train=null"]
    data = load_recipe(recipe, without, partial=True).data
    cut = data is not None and isinstance(data.validation, Cut)
    return load_recipe(recipe, overrides if cut else without)
