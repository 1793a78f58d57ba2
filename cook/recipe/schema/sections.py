"""The JSON Schema of each section of a recipe, from the dataclasses in `cook.sections`.

Annotations of our own: `x-schedule-point` marks a point in the run, `x-path` a text that may name a local
file or folder. `x-path-kind` narrows the latter: `file` (a file or a plain name, never a folder), `recipe`
(always a path, which must exist), `output` (always a path, which may be new).
"""

from __future__ import annotations

from cook.options import Schema, section
from cook.sections import (
    TEXT,
    DataSection,
    EvalSection,
    ModelSection,
    OutputSection,
    StudentSection,
    TeacherSection,
    TrainSection,
)


def one_of(*keys: str) -> list[Schema]:
    """Exactly one of the keys is given, null not counting."""
    return [{"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in keys]


_ONE_TEACHER = [
    {**TEXT, "description": "'self' (the model before compression), a hub id or a folder"},
    section(TeacherSection),
]
TEACHER = {
    "description": "The model that distillation learns from, or a list of several",
    "anyOf": [*_ONE_TEACHER, {"type": "array", "items": {"anyOf": _ONE_TEACHER}, "minItems": 1}],
}
SECTIONS: dict[str, Schema] = {
    "version": {"const": 1, "description": "Version of the recipe format"},
    "model": section(ModelSection, oneOf=one_of("path", "config", "recipe")),
    "student": section(StudentSection, oneOf=one_of("path", "config", "layers")),
    "teacher": TEACHER,
    "data": section(DataSection),
    "train": section(TrainSection, oneOf=one_of("epochs", "steps")),
    "eval": section(EvalSection, default={}),
    "output": section(OutputSection),
}
