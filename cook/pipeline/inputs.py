"""From a recipe to what a run works on: model, data, task, processor, teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from cook import passes as registry
from cook.errors import CookError
from cook.model import load
from cook.passes import Pass
from cook.recipe import Recipe
from cook.train import data as sources
from cook.train import tasks
from cook.train.tasks import Task

Say = Callable[[str], None]


def silent(line: str) -> None:
    """Say nothing."""


def make_passes(recipe: Recipe) -> list[Pass]:
    """The passes of a recipe, bound to their options."""
    return [registry.find(spec.name)(spec.options, id=spec.id, where=spec.where) for spec in recipe.passes]


@dataclass
class Data:
    """The data of a recipe, and the task that reads it.

    Attributes:
        task: not yet bound to a model.
        raw: the splits as they are stored.
        labels: their names, for building a head; None where the task has none.
    """

    task: Task
    raw: dict[str, Dataset]
    labels: list[str] | None


def read_data(
    recipe: Recipe,
    say: Say,
    splits: Sequence[str] = ("train", "validation"),
    *,
    raw: dict[str, Dataset] | None = None,
) -> Data:
    """Find the task, and read the splits unless they are given as `raw`.

    Raises:
        CookError: no task or no data section, or what they name is not there.
    """
    if recipe.data is None:
        raise CookError("the recipe has no data", where=recipe.name, hint="add a data section")
    if recipe.model.task is None:
        raise recipe.error("model", "the task is not said", "add model.task: text-classification, or another")
    task = tasks.find(recipe.model.task, where=recipe.where("model", "task"))(recipe.data, recipe.error, say)
    raw = raw if raw is not None else sources.load(recipe.data, recipe.error, splits=splits)
    labels = list(recipe.model.labels) if recipe.model.labels else task.labels(raw)
    return Data(task, raw, labels)


def load_model(
    recipe: Recipe, data: Data | None, say: Say, *, meta: bool = False, integers: bool = False
) -> PreTrainedModel:
    """The recipe's model in float32, the task bound to it. Its `cook_origin` says where it came from.

    Args:
        meta: without weights, on the meta device.
        integers: keep the integer layers of a folder of cook, for evaluation.
    """
    model = load.load(
        recipe.model,
        auto_class=data.task.auto_class if data else "AutoModel",
        labels=data.labels if data else None,
        meta=meta,
        integers=integers,
        error=_within(recipe, "model"),
    )
    origin = load.origin_of(model)
    for note in origin.notes:
        say(note)
    if data is not None:
        data.task.bind(model.config, data.labels, building=origin.new_head)
    return model


def stored_dtype(recipe: Recipe, model: PreTrainedModel) -> torch.dtype:
    """What floating-point weights are written in: as the recipe says, else as the source has them."""
    asked = recipe.output.dtype if recipe.output is not None else None
    origin: Any = model.cook_origin
    found: torch.dtype = getattr(torch, asked) if asked else origin.dtype or torch.float32
    return found


def load_teacher(
    recipe: Recipe, model: PreTrainedModel, data: Data, processor: Any, say: Say
) -> PreTrainedModel | Literal["self"] | None:
    """The teacher of a recipe: a model, `"self"`, or None.

    Raises:
        CookError: its labels or its tokenizer are not the student's, or it was never trained.
    """
    section = recipe.teacher
    if section is None:
        return None
    if section.path == "self":
        origin: Any = model.cook_origin
        if origin.new_head:
            hint = "train it by a recipe without passes, and name that one in model.recipe"
            raise recipe.error(
                "teacher", "the model starts from random weights: it has nothing to teach", hint
            )
        return own_teacher(section, model)
    teacher = load.load(
        section,
        auto_class=data.task.auto_class,
        labels=data.labels,
        dtype=getattr(torch, section.dtype or "float32"),
        error=_within(recipe, "teacher"),
    )
    if load.origin_of(teacher).new_head:
        raise recipe.error(
            "teacher", f"{section.path} has no head for {data.task.name}", "fine-tune the teacher first"
        )
    theirs, ours = teacher.config.label2id, model.config.label2id
    if data.labels is not None and theirs != ours:
        raise recipe.error(
            "teacher",
            f"the teacher's labels are {theirs}, the student's are {ours}",
            "use a teacher that was trained on the same labels in the same order",
        )
    _same_vocabulary(recipe, section, processor)
    return teacher


def own_teacher(section: Any, model: PreTrainedModel) -> PreTrainedModel | Literal["self"]:
    """`"self"`, or a copy of `model` as it is now that computes in the type that the section asks for."""
    if section.dtype is None:
        return "self"
    copied: Any = copy.deepcopy(model)
    return copied.to(getattr(torch, section.dtype))


def _within(recipe: Recipe, section: str) -> Callable[[str, str, str | None], CookError]:
    """Makes the errors of one section, whose keys are told without its name."""
    return lambda key, message, hint: recipe.error(f"{section}.{key}", message, hint)


def _same_vocabulary(recipe: Recipe, section: Any, processor: Any) -> None:
    if not hasattr(processor, "get_vocab"):
        return
    theirs = load.load_processor(section, "tokenizer")
    if theirs is not None and theirs.get_vocab() != processor.get_vocab():
        raise recipe.error(
            "teacher",
            f"the teacher's tokenizer ({len(theirs.get_vocab())} tokens) differs from the student's "
            f"({len(processor.get_vocab())} tokens)",
            "teacher and student read the same token numbers: use a pair with one tokenizer",
        )
