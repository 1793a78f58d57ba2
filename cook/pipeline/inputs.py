"""From a recipe to what a run works on: model, data, task, processor, teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from cook import passes as registry
from cook.data import tasks
from cook.data.rows import sources
from cook.data.tasks import Task, text
from cook.errors import CookError
from cook.model.hub import load, student
from cook.model.hub.source import auto_class_of
from cook.passes import Pass
from cook.pipeline import tokenizer_check
from cook.recipe import Recipe
from cook.say import Say
from cook.sections import StudentSection, TeacherSection
from cook.teacher.cached import CachedTeacher
from cook.teacher.teacher import Given, Named, folded


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
        counts: rows of each split, after dropping, cutting and `data.limit`.
    """

    task: Task
    raw: dict[str, Dataset]
    labels: list[str] | None

    @property
    def counts(self) -> dict[str, int]:
        return {split: len(dataset) for split, dataset in self.raw.items()}

    def texts(self) -> Iterator[str]:
        """The texts of the first split, for a comparison of tokenizers."""
        return self.task.texts(next(iter(self.raw.values())))


def read_data(
    recipe: Recipe,
    say: Say,
    splits: Sequence[str] = ("train", "validation"),
    *,
    raw: dict[str, Dataset] | None = None,
    warn: Say | None = None,
) -> Data:
    """Find the task, and read the splits unless they are given as `raw`.

    Args:
        say: takes a line for every choice that the user did not make.
        warn: takes a line for everything unusual about the data; `say` when None.

    Raises:
        CookError: no task or no data section, or what they name is not there.
    """
    if recipe.data is None:
        raise CookError("the recipe has no data", where=recipe.name, hint="add a data section")
    if recipe.model.task is None:
        raise recipe.error("model", "the task is not said", "add model.task: text-classification, or another")
    task = tasks.find(recipe.model.task, where=recipe.where("model", "task"))(recipe.data, recipe.error, say)
    options: dict[str, Any] = {
        "splits": splits,
        "columns": task.columns,
        "classes": bool(recipe.model.labels),
        "say": warn or say,
    }
    if raw is None:
        raw = sources.load(recipe.data, recipe.error, **options)
    else:
        parts = {split: sources.in_memory(split, dataset) for split, dataset in raw.items()}
        raw = sources.settle(parts, recipe.data, recipe.error, **options)
    labels = list(recipe.model.labels) if recipe.model.labels else task.labels(raw)
    return Data(task, raw, labels)


def prepared(data: Data, processor: Any, say: Say) -> dict[str, Dataset]:
    """The splits as model inputs; `say` gets how many rows of each were truncated."""
    rows = {split: data.task.prepare(raw, processor) for split, raw in data.raw.items()}
    for split, each in rows.items():
        if cut := data.task.cut(each):
            longest = max(each["length"])
            say(
                f"{split}: {cut:,} of {len(each):,} rows are longer than {longest} tokens and were cut;"
                " data.max_length sets the limit"
            )
    return rows


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
        auto_class=data.task.auto_class if data else auto_class_without_data(recipe),
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


def auto_class_without_data(recipe: Recipe) -> str:
    """The Auto class of the recipe's task; without one, that of the head that the model's folder names."""
    model = recipe.model
    if model.task is not None:
        return tasks.find(model.task, where=recipe.where("model", "task")).auto_class
    if model.path is not None and Path(model.path).is_dir():
        return auto_class_of(Path(model.path))
    return "AutoModel"


def load_student(
    recipe: Recipe, source: PreTrainedModel, data: Data | None, say: Say, processor: Any = None
) -> PreTrainedModel:
    """The model that is trained: the recipe's student, the task bound to it, or else the source itself.

    Args:
        source: the recipe's model; on the meta device for a student without weights.
        processor: of the source; None leaves out the look at the student's tokenizer.

    Raises:
        CookError: it cannot be made, or reads other tokens or fewer of them than the source.
    """
    section = recipe.student
    if section is None:
        return source
    made = student.make(
        source,
        {**vars(section), "attention": recipe.model.attention},
        _within(recipe, "student"),
        auto_class=data.task.auto_class if data else None,
    )
    for note in load.origin_of(made).notes:
        say(note)
    if section.path is not None and processor is not None:
        _same_tokens(recipe, "student", section, made.config, source.config, processor, data)
    if data is not None:
        data.task.bind(made.config, data.labels)
        _same_length(data.task, source.config, processor, "the model that it is made from")
    return made


def stored_dtype(recipe: Recipe, model: PreTrainedModel) -> torch.dtype:
    """What floating-point weights are written in: as the recipe says, else as the source has them."""
    asked = recipe.output.dtype if recipe.has("output") else None
    origin: Any = model.cook_origin
    found: torch.dtype = getattr(torch, asked) if asked else origin.dtype or torch.float32
    return found


def load_teacher(recipe: Recipe, model: PreTrainedModel, data: Data, processor: Any, say: Say) -> Given:
    """The teachers of a recipe, with their weights; None without any.

    Args:
        model: what `self` means, as it is before any pass.

    Raises:
        CookError: the labels or the tokenizer of one are not the student's, or it was never trained.
    """
    found = [
        taught_by(section, _teacher(recipe, place, section, model, data, processor))
        for place, section in _placed(recipe)
    ]
    return found or None


def planned_teachers(recipe: Recipe, source: PreTrainedModel, data: Data | None) -> list[PreTrainedModel]:
    """The teachers of a recipe without weights, for passes to plan with.

    Args:
        source: what `self` means, on the meta device; passes may reshape it afterwards.
    """
    for place, section in _placed(recipe):
        if section.path == "self" and recipe.model.recipe is None:  # which trains the model
            _check_trained(recipe, place, source)
    return [
        copy.deepcopy(source)
        if section.path == "self"
        else load.load(
            section,
            auto_class=data.task.auto_class if data else "AutoModel",
            labels=data.labels if data else None,
            meta=True,
            error=_within(recipe, place),
        )
        for place, section in _placed(recipe)
    ]


def _placed(recipe: Recipe) -> list[tuple[str, TeacherSection]]:
    """The teachers' sections, each with its place in the recipe."""
    one = len(recipe.teachers) == 1
    return [("teacher" if one else f"teacher[{at}]", each) for at, each in enumerate(recipe.teachers)]


def _teacher(
    recipe: Recipe, place: str, section: TeacherSection, model: PreTrainedModel, data: Data, processor: Any
) -> PreTrainedModel | Literal["self"]:
    """One teacher, whose section is at `place` in the recipe."""
    if section.path == "self":
        _check_trained(recipe, place, model)
        return own_teacher(section, model)
    teacher = load.load(
        section,
        auto_class=data.task.auto_class,
        labels=data.labels,
        dtype=getattr(torch, section.dtype or "float32"),
        error=_within(recipe, place),
    )
    if load.origin_of(teacher).new_head:
        raise recipe.error(
            place, f"{section.path} has no head for {data.task.name}", "fine-tune the teacher first"
        )
    theirs, ours = teacher.config.label2id, model.config.label2id
    if data.labels is not None and folded(theirs) != folded(ours):
        raise recipe.error(
            place,
            f"the teacher's labels are {theirs}, the student's are {ours}",
            "use a teacher that was trained on the same labels in the same order",
        )
    _same_tokens(recipe, place, section, teacher.config, model.config, processor, data)
    if isinstance(data.task.data.text, tuple) and tokenizer_check.needs_segments(teacher, model):
        raise recipe.error(
            place,
            f"the teacher tells the two texts of a pair apart by token_type_ids, which a"
            f" {model.config.model_type} does not take",
            "use a teacher and a student that read pairs alike",
        )
    for name, ours, theirs in student.unlike(model.config, teacher.config):
        hint = "use a teacher of the same images"
        raise recipe.error(place, f"the teacher's {name} is {theirs}, the student's {ours}", hint)
    _same_length(data.task, teacher.config, processor, f"the teacher {section.path}")
    return teacher


def _check_trained(recipe: Recipe, place: str, model: PreTrainedModel) -> None:
    """Raise CookError if a model that is to teach itself has weights that were never trained."""
    if load.origin_of(model).new_head:
        hint = "train it by a recipe without passes, and name that one in model.recipe"
        what = "the model's head" if recipe.model.path is not None else "the model"
        message = f"{what} starts from random weights: it has nothing to teach"
        raise recipe.error(place, message, hint)


def own_teacher(section: TeacherSection, model: PreTrainedModel) -> PreTrainedModel | Literal["self"]:
    """`"self"`, or a copy of `model` as it is now: one that computes in the type that the section asks for,
    or that may let go of its weights when its answers are cached."""
    if section.dtype is None and section.cache is False:
        return "self"
    copied: Any = copy.deepcopy(model)
    return copied if section.dtype is None else copied.to(getattr(torch, section.dtype))


def taught_by(section: TeacherSection, model: PreTrainedModel | Literal["self"]) -> Named:
    """A teacher with its weight, and how it answers if its section says that."""
    if isinstance(section.cache, bool):
        return Named(model, section.weight)
    kind = partial(CachedTeacher, top=section.cache.top, dtype=section.cache.dtype)
    return Named(model, section.weight, kind)


def _within(recipe: Recipe, section: str) -> Callable[[str, str, str | None], CookError]:
    """Makes the errors of one section, whose keys are told without its name."""
    return lambda key, message, hint: recipe.error(f"{section}.{key}", message, hint)


def _same_tokens(
    recipe: Recipe,
    who: str,
    section: StudentSection | TeacherSection,
    config: Any,
    source: Any,
    processor: Any,
    data: Data | None,
) -> None:
    """The tokenizers decide; a folder without one has to know as many tokens as the source."""
    if not hasattr(processor, "get_vocab"):
        return
    theirs = load.load_processor(section, "tokenizer")
    knows, known = (getattr(each, "vocab_size", None) for each in (config, source))
    if theirs is None and knows != known:
        raise recipe.error(
            f"{who}.path",
            f"{section.path} has no tokenizer, and its {knows} token numbers cannot be the model's {known}",
            "put the tokenizer into its folder: it has to be the model's",
        )
    if theirs is None:
        return
    role = who.partition("[")[0]
    texts = [] if data is None else data.texts()
    if difference := tokenizer_check.difference(theirs, processor, texts):
        raise recipe.error(
            who,
            f"the {role}'s tokenizer ({len(theirs.get_vocab())} tokens) differs from the model's "
            f"({len(processor.get_vocab())} tokens): {difference}",
            "teacher and student read the same token numbers: use a pair with one tokenizer",
        )


def _same_length(task: Task, config: Any, processor: Any, who: str) -> None:
    """Examples are cut to what the student reads; `who`, of that config, has to read them as well."""
    known = text.positions(config)
    if known is None or not hasattr(processor, "model_max_length"):
        return
    longest = text.max_length(processor, task.config, task.data, task.error)
    if longest > known:
        message = f"the student reads {longest} tokens, {who} {known}"
        raise task.error("data.max_length", message, f"max_length: {known}")
