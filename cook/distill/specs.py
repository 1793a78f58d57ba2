"""What passes that learn from a teacher declare: names, options and which of them fit together.

This module is read to check a recipe: it imports nothing heavy, and neither may its `check`s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cook.passes import WINDOW, Conflict, Spec

WEIGHT: dict[str, Any] = {"type": "number", "minimum": 0, "default": 1.0}
COMMON_OPTIONS: dict[str, Any] = {
    "weight": {**WEIGHT, "description": "weight of this loss"},
    "task_weight": {**WEIGHT, "description": "weight of the task's own loss while this pass acts"},
    **WINDOW,
}
"""The options that each has."""
INTERMEDIATE_OPTIONS: dict[str, Any] = {
    **COMMON_OPTIONS,
    "teacher": {
        "type": "integer",
        "minimum": 0,
        "default": 0,
        "description": "which teacher, counted from 0, where there are several",
    },
}
"""The options of those that compare tensors inside of both models."""
LAYERS: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
    ],
}
"""A teacher layer for each student layer from the first on, or pairs `{student: teacher}`, from 0."""
PROJECTION: dict[str, Any] = {
    "enum": ["none", "shared", "each"],
    "description": "a learned matrix from the student's width to the teacher's: none, one for all pairs, "
    "or one for each",
}
PARTS = ("embeddings", "hidden", "attention")
TERMS = {"embeddings": "embeddings", "hidden": "hidden states", "attention": "attention scores"}
"""What the log calls each part of `distill.tinybert`, apart from what other passes learn."""
RELATIONS = ("queries", "keys", "values")
_NOTHING_TO_LEARN = "a layer that is left out has no relations to learn"


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
    summary = "learn the teacher's output distribution (cross-entropy with temperature, or squared error)"
    options: ClassVar[dict[str, Any]] = {
        "loss": {
            "enum": ["ce", "mse"],
            "default": "ce",
            "description": "soft cross-entropy or squared error",
        },
        "temperature": {
            "type": "number",
            "exclusiveMinimum": 0,
            "default": 1.0,
            "description": "softens both distributions; the loss is scaled by its square (ce)",
        },
        **COMMON_OPTIONS,
    }
    examples = ({"temperature": 2}, {"loss": "mse", "weight": 0.5})


class HiddenSpec(DistillationSpec):
    """The declaration of `DistillHidden`."""

    name = "distill.hidden"
    summary = "learn any tensor inside of the teacher, by module path or by anatomy word"
    options: ClassVar[dict[str, Any]] = {
        "map": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "minProperties": 1,
            "description": "{student tensor: teacher tensor}: layers[3].output, embeddings.output, "
            "layers[0].attention.scores (without projection), logits, or a module's PATH[in] or PATH[out]",
        },
        "distance": {
            "enum": ["cosine", "l1", "mse"],
            "default": "mse",
            "description": "mean square, mean absolute difference, or 1 minus the cosine",
        },
        "normalize": {
            "type": "boolean",
            "default": False,
            "description": "scale vectors to length 1 before they are compared",
        },
        "projection": {**PROJECTION, "default": "none"},
        **INTERMEDIATE_OPTIONS,
    }
    required = ("map",)
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
        found = [name for name in self.given["map"] if is_scores(name)]
        if self.given["projection"] != "none" and len(found) == len(self.given["map"]):
            raise self.error(
                "scores are compared head by head: there is nothing to project",
                option="projection",
                hint="leave it out",
            )
        if found and (self.given["distance"] == "cosine" or self.given["normalize"]):
            raise self.error(
                f"{found[0]} has no directions to compare: each score counts for itself",
                option="normalize" if self.given["normalize"] else "distance",
                hint="give the scores a distill.hidden of their own, with distance mse or l1, not normalized",
            )


class PatientSpec(DistillationSpec):
    """The declaration of `DistillPatient`."""

    name = "distill.patient"
    summary = "learn the direction of the teacher's hidden states, layer by layer (PKD)"
    options: ClassVar[dict[str, Any]] = {
        "layers": {
            "anyOf": [{"enum": ["last", "skip"]}, *LAYERS["anyOf"]],
            "default": "skip",
            "description": "which teacher layers: every k-th (skip), the last ones (last), both without the "
            "top; or a list, one for each student layer from the first on; or {student: teacher}",
        },
        "tokens": {
            "enum": ["first", "all"],
            "default": "first",
            "description": "the first token of an example, which in a decoder sees no other, or all that are "
            "not padding",
        },
        **INTERMEDIATE_OPTIONS,
    }
    examples = ({"weight": 10, "layers": [0]}, {"tokens": "all"})


class TinyBERTSpec(DistillationSpec):
    """The declaration of `DistillTinyBERT`."""

    name = "distill.tinybert"
    summary = "learn the teacher's embeddings, hidden states and attention scores (TinyBERT)"
    options: ClassVar[dict[str, Any]] = {
        "parts": {
            "type": "array",
            "items": {"enum": list(PARTS)},
            "minItems": 1,
            "uniqueItems": True,
            "default": list(PARTS),
            "description": "which of them are learned",
        },
        "layers": {
            "anyOf": [{"enum": ["last", "uniform"]}, *LAYERS["anyOf"]],
            "default": "uniform",
            "description": "which teacher layers: every k-th up to the top (uniform), the last ones (last); "
            "or a list, one for each student layer from the first on; or {student: teacher}",
        },
        "projection": {**PROJECTION, "default": "shared"},
        **{
            part: {**WEIGHT, "description": f"weight of the {TERMS[part]} beside the others"}
            for part in PARTS
        },
        **INTERMEDIATE_OPTIONS,
    }
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
    summary = "learn how the tokens of one teacher layer relate to each other (MiniLM, v1 and v2)"
    options: ClassVar[dict[str, Any]] = {
        "version": {
            "enum": [1, 2],
            "default": 2,
            "description": "1: attention distributions and value relations, head by head; 2: relations of "
            "queries, keys and values in relation heads",
        },
        "relations": {
            "type": "array",
            "items": {"enum": list(RELATIONS)},
            "minItems": 1,
            "uniqueItems": True,
            "default": list(RELATIONS),
            "description": "which relations version 2 learns",
        },
        "heads": {
            "type": ["integer", "null"],
            "minimum": 1,
            "default": None,
            "description": "relation heads of version 2; null: the teacher's attention heads",
        },
        "student_layer": {"type": "integer", "default": -1, "description": "which layer learns"},
        "teacher_layer": {"type": "integer", "default": -1, "description": "from which layer of the teacher"},
        **INTERMEDIATE_OPTIONS,
    }
    examples = ({}, {"version": 1, "weight": 0.5}, {"heads": 2, "relations": ["values"], "teacher_layer": 0})
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "prune.layerdrop": Conflict(_NOTHING_TO_LEARN, "prune.layerdrop has `student_layer` in `keep`"),
        "prune.layers": Conflict(_NOTHING_TO_LEARN, "`student_layer` is one that stays"),
    }

    def check(self) -> None:
        for option, default in (("relations", list(RELATIONS)), ("heads", None)):
            if self.given["version"] == 1 and self.given[option] != default:
                raise self.error(f"{option} belongs to version 2", option=option, hint="set version: 2")
