"""Pieces that the sections of a recipe are written with, as JSON Schema.

Two annotations of our own: `x-schedule-point` marks a point in the run, `x-path` a text that may name a
local file or folder. `x-path-kind` narrows the latter: `file` (a file or a plain name, never a
folder), `recipe` (always a path, which must exist), `output` (always a path, which may be new).
"""

from __future__ import annotations

from typing import Any

from cook.options import SCHEDULE_POINT

Schema = dict[str, Any]


def section(description: str, properties: Schema, required: tuple[str, ...] = (), **more: Any) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


def one_of(*keys: str) -> list[Schema]:
    """Exactly one of the keys is given, null not counting."""
    return [{"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in keys]


def option(kind: str | list[str], default: Any, description: str, **more: Any) -> Schema:
    return {"type": kind, "default": default, "description": description, **more}


def choice(default: Any, description: str, *values: Any) -> Schema:
    return {"enum": list(values), "default": default, "description": description}


def schedule_point(default: Any, description: str) -> Schema:
    kinds = [*SCHEDULE_POINT["type"], "null"] if default is None else SCHEDULE_POINT["type"]
    return {**SCHEDULE_POINT, "type": kinds, "default": default, "description": description}


def files(default: str, description: str) -> Schema:
    item = {"type": "string", "minLength": 1, "x-path": True, "x-path-kind": "file"}
    return {
        "anyOf": [item, {"type": "array", "items": item, "minItems": 1}],
        "x-path": True,
        "x-path-kind": "file",
        "default": default,
        "description": description,
    }


TEXT = {"type": "string", "minLength": 1}
DTYPES = ("float32", "bfloat16", "float16")
TRUST = option("boolean", False, "run the Python code that a hub repository brings")
PICKLE = option("boolean", False, "read weights that are not safetensors (a pickle can run code)")
REVISION = option(["string", "null"], None, "branch, tag or commit on the hub; null: the newest")
