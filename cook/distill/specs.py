"""Declarations of the distillation passes: names, options and their checks, without heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cook.options import REQUIRED, Window, option
from cook.passes import Conflict, Spec

TERMS = {"embeddings": "embeddings", "hidden": "hidden states", "attention": "attention scores"}
"""The names of the loss terms of `distill.tinybert`, distinct from those of other passes."""
PARTS = tuple(TERMS)
RELATIONS = ("queries", "keys", "values")
_NOTHING_TO_LEARN = "a layer that is left out has no relations to learn"

Projection = Literal["none", "shared", "each"]
PROJECTION = (
    "Learned matrix from the student's width to the teacher's: none, one for all pairs, or one for each pair"
)
LayerMap = str | tuple[int, ...] | Mapping[str, int]


def layers(default: str, other: str, help: str) -> Any:
    """An option that maps student layers to teacher layers.

    Args:
        default, other: the names of the two strategies.
        help: what the strategies mean.
    """
    forms = [
        {"enum": sorted((default, other))},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
    ]
    lists = "or a list with a teacher layer for each student layer, or {student: teacher}"
    return option(default, f"{help}; {lists}", schema={"anyOf": forms})


@dataclass(frozen=True, kw_only=True)
class LossOptions(Window):
    """The options of every distillation pass."""

    weight: float = option(1.0, "Weight of this loss", minimum=0)
    task_weight: float = option(
        1.0, "Weight of the task's own loss while this pass is in its window", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class IntermediateOptions(LossOptions):
    """The options of the passes that compare tensors inside of both models."""

    teacher: int = option(0, "Index of the teacher, where there are several", minimum=0)


@dataclass(frozen=True, kw_only=True)
class LogitsOptions(LossOptions):
    """The options of `distill.logits`."""

    loss: Literal["ce", "mse"] = option("ce", "Soft cross-entropy (ce) or squared error (mse) of the logits")
    temperature: float = option(
        1.0, "Temperature of both distributions; the cross-entropy is multiplied by its square", above=0
    )


@dataclass(frozen=True, kw_only=True)
class HiddenOptions(IntermediateOptions):
    """The options of `distill.hidden`."""

    map: Mapping[str, str] = option(
        REQUIRED,
        "{student tensor: teacher tensor}: layers[3].output, embeddings.output, layers[0].attention.scores"
        " (without projection), logits, or the input or output of a module, PATH[in] or PATH[out]",
        min_properties=1,
    )
    distance: Literal["cosine", "l1", "mse"] = option(
        "mse", "Mean squared difference, mean absolute difference, or 1 minus the cosine"
    )
    normalize: bool = option(False, "Scale vectors to length 1 before they are compared")
    projection: Projection = option("none", PROJECTION)


@dataclass(frozen=True, kw_only=True)
class PatientOptions(IntermediateOptions):
    """The options of `distill.patient`."""

    layers: LayerMap = layers(
        "skip",
        "last",
        "Teacher layers: every k-th (skip) or the last ones (last), without the top layer",
    )
    tokens: Literal["first", "all"] = option(
        "first",
        "Tokens that are compared: the first of each example, which in a decoder attends to none else,"
        " or all that are not padding",
    )


@dataclass(frozen=True, kw_only=True)
class TinyBERTOptions(IntermediateOptions):
    """The options of `distill.tinybert`."""

    parts: tuple[Literal["embeddings", "hidden", "attention"], ...] = option(
        PARTS, "Parts of the model that are compared", min_items=1, unique=True
    )
    layers: LayerMap = layers(
        "uniform", "last", "Teacher layers: every k-th up to the top (uniform) or the last ones (last)"
    )
    projection: Projection = option("shared", PROJECTION)
    embeddings: float = option(1.0, "Weight of the embeddings beside the other parts", minimum=0)
    hidden: float = option(1.0, "Weight of the hidden states beside the other parts", minimum=0)
    attention: float = option(1.0, "Weight of the attention scores beside the other parts", minimum=0)


@dataclass(frozen=True, kw_only=True)
class MiniLMOptions(IntermediateOptions):
    """The options of `distill.minilm`."""

    version: Literal[1, 2] = option(
        2,
        "1: attention distributions and value relations of each head; 2: relations of queries, keys and"
        " values in relation heads",
    )
    relations: tuple[Literal["queries", "keys", "values"], ...] = option(
        RELATIONS, "Relations that version 2 compares", min_items=1, unique=True
    )
    heads: int | None = option(
        None, "Number of relation heads of version 2; null: the teacher's attention heads", minimum=1
    )
    student_layer: int = option(-1, "Student layer that learns")
    teacher_layer: int = option(-1, "Teacher layer that it learns from")


def is_scores(name: str) -> bool:
    """Whether a tensor's name is that of attention scores."""
    return name.endswith(".attention.scores")


class DistillationSpec(Spec):
    """The declaration of `DistillationPass`."""

    phase = "observe"
    needs = frozenset({"training", "teacher"})


class LogitsSpec(DistillationSpec):
    """The declaration of `DistillLogits`."""

    name = "distill.logits"
    summary = "distill the output distribution: cross-entropy with temperature, or squared error"
    Options = LogitsOptions
    options: LogitsOptions
    examples = ({"temperature": 2}, {"loss": "mse", "weight": 0.5})


class HiddenSpec(DistillationSpec):
    """The declaration of `DistillHidden`."""

    name = "distill.hidden"
    summary = "distill any tensors inside the models, by module path or anatomy name"
    Options = HiddenOptions
    options: HiddenOptions
    examples = (
        {"map": {"layers[0].output": "layers[1].output"}},
        {
            "map": {"embeddings.output": "embeddings.output", "layers[-1].output": "layers[-1].output"},
            "distance": "cosine",
            "projection": "each",
            "end": "50%",
        },
        {"map": {"layers[1].attention.values": "layers[0].attention.values"}, "normalize": True},
    )

    def check(self) -> None:
        found = [name for name in self.options.map if is_scores(name)]
        if self.options.projection != "none" and len(found) == len(self.options.map):
            raise self.error(
                "scores are compared head by head: there is nothing to project",
                option="projection",
                hint="leave it out",
            )
        if found and (self.options.distance == "cosine" or self.options.normalize):
            raise self.error(
                f"{found[0]} has no directions to compare: each score counts for itself",
                option="normalize" if self.options.normalize else "distance",
                hint="give the scores a distill.hidden of their own, with distance mse or l1, not normalized",
            )


class PatientSpec(DistillationSpec):
    """The declaration of `DistillPatient`."""

    name = "distill.patient"
    summary = "distill the direction of hidden states, layer by layer (PKD)"
    Options = PatientOptions
    options: PatientOptions
    examples = ({"weight": 10, "layers": [0]}, {"tokens": "all"})


class TinyBERTSpec(DistillationSpec):
    """The declaration of `DistillTinyBERT`."""

    name = "distill.tinybert"
    summary = "distill embeddings, hidden states and attention scores (TinyBERT)"
    Options = TinyBERTOptions
    options: TinyBERTOptions
    examples = ({}, {"parts": ["hidden"], "projection": "none", "layers": "last"})
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "prune.layerdrop": Conflict(
            "a layer that is left out has no attention scores to learn",
            "`parts` has no attention, or prune.layerdrop has the student's layers in `keep`",
        ),
    }


class MiniLMSpec(DistillationSpec):
    """The declaration of `DistillMiniLM`."""

    name = "distill.minilm"
    summary = "distill the relations between the tokens of one layer (MiniLM, v1 and v2)"
    Options = MiniLMOptions
    options: MiniLMOptions
    examples = ({}, {"version": 1, "weight": 0.5}, {"heads": 2, "relations": ["values"], "teacher_layer": 0})
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "prune.layerdrop": Conflict(_NOTHING_TO_LEARN, "prune.layerdrop has `student_layer` in `keep`"),
        "prune.layers": Conflict(_NOTHING_TO_LEARN, "`student_layer` is one that stays"),
    }

    def check(self) -> None:
        for name, default in (("relations", RELATIONS), ("heads", None)):
            if self.options.version == 1 and getattr(self.options, name) != default:
                raise self.error(f"{name} belongs to version 2", option=name, hint="set version: 2")
