"""The doors for Python: `apply` compresses a model in memory, `attach` serves somebody's own loop."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from cook.data import calibration as examples
from cook.data.corpus import corpus
from cook.data.rows.in_memory import dataset
from cook.data.tasks import TASKS
from cook.errors import CookError, nearest
from cook.model.hub.adapters import refuse_adapters
from cook.model.hub.load import name_labels
from cook.model.hub.quantizer import blueprint_of
from cook.pipeline import environment, tokenizer_check
from cook.pipeline.execute import execute
from cook.pipeline.inputs import Data, load_student, make_passes, own_teacher, read_data, taught_by
from cook.pipeline.plan import plan_in_memory
from cook.pipeline.prepare import prepare
from cook.pipeline.report_parts import data_counts, pass_rows, positive_class, state, student
from cook.recipe import Recipe, load_recipe, thaw
from cook.report import Model, Report
from cook.say import silent
from cook.sections import Cut, TrainSection
from cook.session import Session
from cook.teacher.teacher import Given
from cook.train.seeds import seed_everything
from cook.version import __version__

if TYPE_CHECKING:
    import pandas

SPLITS = ("train", "validation")

Config = str | os.PathLike[str] | Mapping[str, Any] | Recipe
Rows: TypeAlias = "Dataset | pandas.DataFrame | Mapping[str, Sequence[Any]] | Iterable[Mapping[str, Any]]"


@dataclass(frozen=True)
class Result:
    """What `apply` gives back.

    Attributes:
        model: the model that was given, compressed in place, or with a student section the student;
            `save_pretrained` writes it as usual.
        report: what each pass did.
        tokenizer: that fits the model: the one that was given, or what a pass made of it.
    """

    model: PreTrainedModel
    report: Report
    tokenizer: Any | None = None


def apply(
    model: PreTrainedModel,
    config: Config,
    *,
    data: Mapping[str, Rows] | None = None,
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    teacher: Given = None,
    tokenizer: Any | None = None,
) -> Result:
    """Compress a model in memory.

    With a `train` section, which needs data, the passes share one training run, as in `cook run`.
    Without, the passes that need no training act at once.

    Args:
        model: changed in place. Float weights; they are trained in the type that they have. With a
            student section it is the source, which keeps its weights; a teacher gets no gradients.
        config: a recipe: a path, a mapping or a Recipe. `version` and `passes` are enough.
        data: `{"train": rows, "validation": rows}`, where rows are a pandas DataFrame (its index is left
            out), a polars DataFrame, a pyarrow Table, a dict of columns, an iterable of dicts (a list, a
            generator) or a `datasets.Dataset`; the recipe's data section names the
            columns, and may cut validation out of train. What is odd about the data is a Python warning.
            None reads what that section names.
        calibration: batches as the model takes them, with labels, for passes that look at examples; None
            takes a sample of the training rows.
        teacher: a model or `"self"`, or a list of those or of pairs of one and its weight; None takes the
            recipe's.
        tokenizer: the tokenizer or image processor, for data and for passes that ask for it; left as it is.

    Raises:
        CookError: the config is wrong, or a pass needs data, training or a teacher that is not there.
        RunError: training failed.
    """
    recipe = load_recipe(config, partial=True)
    _check(model)
    read = _data(recipe, model, data)
    train = recipe.train
    if train is not None and (read is None or "train" not in read.raw):
        hint = "give data={'train': rows}, or leave the train section out to act at once"
        raise recipe.error("train", "there is no data to train on", hint)
    source = model
    if read is not None:
        read.task.bind(source.config, read.labels)
    if train is not None and recipe.student is not None:
        seed_everything(train.seed)  # a student that starts from random weights
    accelerator = environment.accelerator(recipe, device=source.device)
    given = teacher if teacher is not None else _named_teacher(recipe, source, cached=train is not None)
    processor = tokenizer
    if read is not None:
        processor = tokenizer if tokenizer is not None else read.task.plain_processor()
        if hasattr(processor, "get_vocab"):
            for note in tokenizer_check.notes(processor, source.config):
                _warn(note)
    context = prepare(recipe, source, read, processor, accelerator, teacher=lambda: given)
    plan_in_memory(context.model, context.passes, given, source)
    found = None if calibration is None else examples.given(calibration)
    outcome = execute(replace(context, calibration=found, progress=False))
    report = Report(
        cook=__version__,
        created=environment.now(),
        recipe={"name": recipe.name, "digest": recipe.digest},
        model=Model(
            name=source.config.name_or_path or type(source).__name__,
            student=student(recipe),
            teachers=[each.path for each in recipe.teachers],
            before=state(outcome.before),
            after=state(outcome.after),
            float32_bytes=4 * outcome.before["parameters"],
            positive_class=positive_class(source.config, outcome.after["metrics"]),
        ),
        passes=pass_rows(context.passes, outcome),
        train=outcome.train,
        environment=environment.describe(
            context.model.device,
            seed=train.seed if train else None,
            precision=_precision(context.model, train),
        ),
        data=data_counts(read, context.rows, recipe.eval.limit),
    )
    return Result(context.model.eval(), report, outcome.processor)


def attach(
    model: PreTrainedModel,
    config: Config,
    *,
    total_steps: int,
    steps_per_epoch: int = 1,
    teacher: Given = None,
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    tokenizer: Any | None = None,
) -> Session:
    """Bind a recipe's passes to a model, for your own training loop.

    Args:
        model: with a head that returns a loss; changed in place, unless a student is made from it, which
            then is `session.model`.
        config: a recipe; only its passes, its student and its teacher count.
        total_steps: optimizer steps that your loop will make.
        steps_per_epoch: of them, in one epoch; for schedule points such as `1.5 epochs`.
        teacher: a model or `"self"`, or a list of those or of pairs of one and its weight; None takes the
            recipe's.
        calibration: batches as the model takes them, with labels, for passes that look at examples.
        tokenizer: for passes that ask for it; `session.tokenizer` and `session.token_id_map` say after
            `finish` what became of it and of the tokens in your batches.

    Returns:
        A session; `cook.session` shows the loop around it. Used as a context manager it removes its
        hooks whatever happens.

    Raises:
        CookError: the config is wrong, or a pass cannot be attached to this model.
    """
    recipe = load_recipe(config, partial=True)
    _check(model)
    passes, made = make_passes(recipe), load_student(recipe, model, None, silent)
    teacher = teacher if teacher is not None else _named_teacher(recipe, model, cached=False)
    source = model if recipe.student else None
    plan_in_memory(made, passes, teacher, source)
    return Session(
        passes,
        made,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        teacher=teacher,
        source=source,
        calibration=None if calibration is None else examples.given(calibration),
        tokenizer=tokenizer,
        corpus=corpus(),
    )


def _precision(model: PreTrainedModel, train: TrainSection | None) -> str:
    """What was computed in: a model in memory trains in the type that it has."""
    own = str(model.dtype).removeprefix("torch.")
    half = model.dtype in (torch.float16, torch.bfloat16)
    return train.precision if train is not None and not half else own


def _check(model: object) -> None:
    refuse_adapters(model)
    if not isinstance(model, PreTrainedModel):
        raise CookError(
            f"found a {type(model).__name__}, expected a model of transformers",
            hint="other modules have no config to rebuild them from: wrap yours in a PreTrainedModel",
        )
    if any(edit.op == "integer" for edit in blueprint_of(model).edits):
        raise CookError(
            "the model holds integers, which no pass can change",
            hint="model = model.dequantize() gives a float model; its passes can go on from there",
        )


def _named_teacher(recipe: Recipe, model: PreTrainedModel, *, cached: bool) -> Given:
    """The recipe's teachers, if they are the model itself.

    Args:
        cached: whether there are data to keep their answers for.
    """
    for section in recipe.teachers:
        if section.path != "self":
            hint = "load the model and give it as `teacher=`"
            raise recipe.error("teacher", "a teacher's path is for `cook run`", hint)
        if section.cache is not False and not cached:
            hint = "leave it out; cook.run, and cook.apply with data to train on, have what it needs"
            raise recipe.error("teacher", "a teacher's cache is about data, and there are none here", hint)
    return [taught_by(section, own_teacher(section, model)) for section in recipe.teachers] or None


def _data(recipe: Recipe, model: PreTrainedModel, data: Any) -> Data | None:
    """The recipe's data, with the given rows in the place of what it names; None without any."""
    if data is None and recipe.data is None:
        return None
    if data is not None and not isinstance(data, Mapping):
        hint = "data={'train': rows, 'validation': rows}"
        raise CookError(f"found a {type(data).__name__}, expected rows by split", where="data", hint=hint)
    value = thaw(recipe.value)
    named = value.get("model") or {}
    value["model"] = {"path": "memory", "task": named.get("task") or _task_of(model)}
    if data is not None:
        section = value.get("data") or {}
        cut = isinstance(section.get("validation"), dict) and "train" in data and "validation" not in data
        validation = section["validation"] if cut else "validation"
        value["data"] = {**section, "path": "memory", "train": "train", "validation": validation}
    for split in data or ():
        if split not in SPLITS:
            hint = nearest(split, SPLITS) or "data={'train': rows, 'validation': rows}"
            raise CookError(f"there is no use for a split {split!r}", where="data", hint=hint)
    if named.get("head") == "new":
        hint = "load the model with num_labels=, or leave model.head out"
        raise recipe.error("model.head", "a model in memory keeps the head that it has", hint)
    whole = load_recipe(value, partial=True)
    cut = whole.data is not None and isinstance(whole.data.validation, Cut)
    splits = [split for split in SPLITS if data is None or split in data or cut]
    raw = None if data is None else {split: dataset(data[split], split) for split in SPLITS if split in data}
    if labels := named.get("labels"):
        if len(labels) != model.config.num_labels:
            message = f"{len(labels)} labels are given, the model has {model.config.num_labels}"
            raise recipe.error("model.labels", message, "name each of its classes, in their order")
        name_labels(model.config, labels)
    return read_data(whole, silent, splits, raw=raw, warn=_warn)


def _warn(line: str) -> None:
    warnings.warn(line, UserWarning, stacklevel=2)


def _task_of(model: PreTrainedModel) -> str:
    """The task that a model's class is made for."""
    ending = type(model).__name__.rpartition("For")[2]
    for name, task in TASKS.items():
        if task.auto_class.rpartition("For")[2] == ending:
            return name
    raise CookError(
        f"no task fits a {type(model).__name__}", hint=f"name one in model.task: {', '.join(TASKS)}"
    )
