"""A model folder as it is cut: the whole model, with the data of a recipe where these are there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cook.errors import CookError
from cook.model.hub import load
from cook.model.hub.source import auto_class_of
from cook.pipeline import environment
from cook.pipeline.evaluate import open_folder
from cook.pipeline.inputs import stored_dtype
from cook.pipeline.prepare import RunContext, prepare
from cook.recipe import Recipe, load_recipe
from cook.say import Say


@dataclass(frozen=True)
class SourceModel:
    """The whole model.

    Attributes:
        recipe: with nothing in it but the model and its data.
        context: the model, and what it is measured by.
        auto_class: the class of transformers that loads it.
    """

    recipe: Recipe
    context: RunContext
    auto_class: str

    def load(self, meta: bool = False) -> PreTrainedModel:
        """The model again, in float32."""
        return load.load(self.recipe.model, auto_class=self.auto_class, meta=meta, error=self.error)

    def error(self, key: str, message: str, hint: str | None) -> CookError:
        """An error of the model section."""
        return self.recipe.error(f"model.{key}", message, hint)


def open_source_model(place: Path, recipe: Any, overrides: list[str], say: Say) -> SourceModel:
    """The model in a folder, and the data of a recipe if they can be had.

    Args:
        recipe: None takes `recipe.yaml` in the folder; where that is of no use, `say` hears why.
        overrides: changes to the recipe, as after `--set`.

    Raises:
        CookError: it is no model, has no trained head, or what was asked of the recipe cannot be.
    """
    if recipe is not None or (place / "recipe.yaml").is_file():
        try:
            opened = open_folder(place, place / "recipe.yaml" if recipe is None else recipe, overrides)
        except CookError as error:
            if recipe is not None or overrides:
                raise
            say(
                "accuracy is not measured: its recipe names no data that are of use here; --recipe names"
                f" another one\n  {error}"
            )
        else:
            assert opened.task is not None
            accelerator = environment.accelerator(opened.recipe)
            dtype = stored_dtype(opened.recipe, opened.model)
            context = replace(opened, accelerator=accelerator, dtype=dtype)
            return _trained(SourceModel(opened.recipe, context, opened.task.auto_class))
    elif overrides:
        raise CookError(
            "there is no recipe.yaml in the folder to change", where=str(place), hint="name a --recipe"
        )
    else:
        say(f"accuracy is not measured: there is no recipe.yaml in {place}; --recipe names one with data")
    bare = load_recipe(
        {"version": 1, "model": {"path": str(place)}, "eval": {"latency": False}}, partial=True
    )
    auto_class = auto_class_of(place)
    model = load.load(bare.model, auto_class=auto_class, error=bare.error)
    images = model.main_input_name == "pixel_values"
    processor = load.load_processor(bare.model, "image" if images else "tokenizer")
    accelerator = environment.accelerator(bare, device=torch.device("cpu"))
    context = prepare(bare, model, None, processor, accelerator)
    return _trained(SourceModel(bare, replace(context, dtype=stored_dtype(bare, model)), auto_class))


def _trained(source: SourceModel) -> SourceModel:
    if load.origin_of(source.context.model).new_head:
        hint = "name a --recipe with the task that it was trained for"
        raise CookError(
            f"the model has no head for {source.auto_class}", where=source.recipe.model.path, hint=hint
        )
    return source
