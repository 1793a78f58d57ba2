"""From a recipe and a loaded model to the context of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from cook.data import calibration
from cook.data.augment.texts import augmented
from cook.data.tasks import Task
from cook.passes import Pass
from cook.pipeline.inputs import Data, load_student, make_passes, prepared
from cook.recipe import Recipe
from cook.say import Say, silent
from cook.sections import EvalSection, TrainSection
from cook.teacher.teacher import Given
from cook.train.loop import Loop


@dataclass
class RunContext:
    """Everything that one run works on.

    Attributes:
        recipe: in which `model.recipe` stands for the model that it makes.
        model: that the passes change: the source, or the student that was made from it.
        task: bound to the model; None without data.
        source: what the model was made from, if it is a student: what `before` is told of.
        rows: prepared splits; `train` may be missing when nothing trains.
        raw: the same splits as they are stored, for passes that ask for texts.
        processor: the tokenizer or image processor that prepared them.
        calibration: what passes look at; None takes a sample of the training rows, if there are any.
        folder: for checkpoints; None keeps none.
        dtype: what floating-point weights are stored in.
        state: the checkpoint from which a run goes on; forgotten once it is taken back.
        begun: called with the loop before it runs.
        say: takes a line for people before each part that may take long.
    """

    recipe: Recipe
    model: PreTrainedModel
    passes: Sequence[Pass]
    task: Task | None
    rows: Mapping[str, Dataset]
    accelerator: Accelerator
    raw: Mapping[str, Dataset] = field(default_factory=dict)
    processor: Any | None = None
    source: PreTrainedModel | None = None
    teacher: Given = None
    calibration: calibration.Examples | None = None
    folder: Path | None = None
    dtype: torch.dtype | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    begun: Callable[[Loop], None] | None = None
    progress: bool = True
    say: Say = silent

    @property
    def train(self) -> TrainSection | None:
        return self.recipe.train

    @property
    def evaluation(self) -> EvalSection:
        return self.recipe.eval


def prepare(
    recipe: Recipe,
    source: PreTrainedModel,
    data: Data | None,
    processor: Any | None,
    accelerator: Accelerator,
    *,
    teacher: Callable[[], Given] | None = None,
    say: Say = silent,
) -> RunContext:
    """The context of a run: the student, its passes, and the rows as models read them.

    Args:
        source: the recipe's model with its weights, bound to the task of `data`.
        data: the splits as they are stored; None without data.
        processor: the tokenizer or image processor of the source.
        teacher: gives the teachers, when the student is there; None: no teacher.
        say: takes a line for people before each part that may take long, and for what is unusual.

    Raises:
        CookError: the student cannot be made, the rows do not fit it, or there are none to train on.
    """
    model = load_student(recipe, source, data, say, processor)
    rows = {} if data is None else prepared(data, processor, say)
    taught = None if teacher is None else teacher()
    if recipe.train is not None and data is not None:
        rows["train"] = augmented(
            rows["train"],
            data.task,
            recipe.train,
            processor=processor,
            model=source,
            teacher=taught,
            accelerator=accelerator,
        )
    return RunContext(
        recipe=recipe,
        model=model,
        passes=make_passes(recipe),
        task=None if data is None else data.task,
        rows=rows,
        accelerator=accelerator,
        raw={} if data is None else data.raw,
        processor=processor,
        source=source if recipe.student is not None else None,
        teacher=taught,
        say=say,
    )
