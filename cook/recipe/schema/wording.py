"""What a validation error says to a person: what was found, what was expected, what was meant.

jsonschema finds the mistakes; its own words ("is not valid under any of the given schemas") are for
programs. Three keywords report key by key here, so that each mistake has a place of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from cook.builtin import task_hint
from cook.errors import CookError, nearest
from cook.options import Schema
from cook.recipe.text import numbers
from cook.recipe.text.place import Path
from cook.recipe.text.schedule_point import SchedulePoint
from cook.recipe.text.values import MAX_INTEGER


def _required(validator: Any, keys: list[str], instance: Any, schema: Schema) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for key in keys:
            if key not in instance:
                yield ValidationError("missing", path=[key])


def _unknown(validator: Any, rest: Any, instance: Any, schema: Schema) -> Iterator[ValidationError]:
    if rest is not False:
        yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, rest, instance, schema)
    elif isinstance(instance, dict):
        for key in instance:
            if key not in schema.get("properties", {}):
                yield ValidationError("unknown", path=[key])


def _schedule_point(validator: Any, wanted: Any, instance: Any, schema: Schema) -> Iterator[ValidationError]:
    if wanted and isinstance(instance, (str, int, float)) and not isinstance(instance, bool):
        try:
            SchedulePoint.parse(instance)
        except CookError as error:
            yield ValidationError(error.message, cause=error)


def _is_integer(checker: Any, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or (value.is_integer() and abs(value) <= MAX_INTEGER)


def _is_number(checker: Any, value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


Validator = extend(
    Draft202012Validator,
    {"required": _required, "additionalProperties": _unknown, "x-schedule-point": _schedule_point},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_integer, "number": _is_number}
    ),
)


def leaves(error: ValidationError) -> Iterator[ValidationError]:
    """The mistakes inside of an `anyOf`: those of the one form whose type the value has."""
    if error.validator != "anyOf" or not error.context:
        yield error
        return
    forms: dict[Any, list[ValidationError]] = {}
    for inner in error.context:
        forms.setdefault(inner.relative_schema_path[0], []).append(inner)
    here = list(error.absolute_path)
    fitting = [
        form
        for form in forms.values()
        if not any(inner.validator == "type" and list(inner.absolute_path) == here for inner in form)
    ]
    if len(fitting) != 1:
        yield error
        return
    for inner in fitting[0]:
        yield from leaves(inner)


def show(value: Any) -> str:
    """A value in the words of a recipe, cut to what fits on a line."""
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def found(value: Any) -> str:
    """What a value is, for `found ...`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, str):
        return f"the text {show(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping of {len(value)} keys" if len(value) != 1 else f"a mapping of {next(iter(value))!r}"
    return show(value)


def expected(schema: Schema) -> str:
    """What a schema permits, for `expected ...`."""
    if "const" in schema:
        return show(schema["const"])
    if "enum" in schema:
        names = [show(value) for value in schema["enum"]]
        return names[0] if len(names) == 1 else f"one of {', '.join(names[:-1])} or {names[-1]}"
    if schema.get("x-schedule-point"):
        nothing = " or null" if "null" in schema["type"] else ""
        return f"a point in the run: a step (500), epochs ('1.5 epochs') or a share ('30%'){nothing}"
    if "anyOf" in schema:
        return " or ".join(expected(form) for form in schema["anyOf"])
    kinds = schema.get("type", "any value")
    return " or ".join(_kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _kind(kind: str, schema: Schema) -> str:
    if kind in ("number", "integer"):
        name = "a number" if kind == "number" else "a whole number"
        bounds = [
            f"{word} {show(schema[key])}"
            for key, word in (
                ("exclusiveMinimum", "above"),
                ("minimum", "at least"),
                ("exclusiveMaximum", "below"),
                ("maximum", "at most"),
            )
            if key in schema
        ]
        of = "of " if bounds and bounds[0].startswith("at") else ""
        return f"{name} {of}{' and '.join(bounds)}" if bounds else name
    if kind == "string":
        if "pattern" in schema:
            sample = schema.get("examples", [schema.get("default", schema["pattern"])])[0]
            return f"a text like {sample!r}"
        return "a text" if not schema.get("minLength") else "a text that is not empty"
    if kind == "array":
        low, high = schema.get("minItems"), schema.get("maxItems")
        size = f" of {low}" if low is not None and low == high else f" of at least {low}" if low else ""
        inner = schema.get("items", {})
        each = f", each {expected(inner)}" if "type" in inner or "enum" in inner else ""
        return f"a list{size}{each}"
    mapping = "a mapping that is not empty" if schema.get("minProperties") else "a mapping"
    names = {"boolean": "true or false", "null": "null", "object": mapping}
    return names.get(kind, kind)


_BY_SCHEMA = {
    "type", "enum", "const", "anyOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "minItems", "maxItems", "minLength", "minProperties", "pattern", "x-schedule-point",
}  # fmt: skip


def value_problem(error: ValidationError, path: Path) -> tuple[str, str | None]:
    """Message and hint of a value that is of the wrong type, out of range or none of the choices."""
    schema = error.schema if isinstance(error.schema, dict) else {}
    value = error.instance
    if error.validator == "x-schedule-point" and isinstance(error.cause, CookError):
        return error.cause.message, error.cause.hint
    if error.validator not in _BY_SCHEMA:
        return error.message, schema.get("description")
    message = f"found {found(value)}, expected {expected(schema)}"
    return message, _repair(value, schema, path) or _meaning(schema, path)


def _meaning(schema: Schema, path: Path) -> str | None:
    return f"{path[-1]}: {schema['description']}" if path and "description" in schema else None


def _repair(value: Any, schema: Schema, path: Path) -> str | None:
    """The change that makes a common slip right."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, str):
        if path == ("model", "task"):
            return task_hint(value)
        if "enum" in schema:
            return nearest(value, [choice for choice in schema["enum"] if isinstance(choice, str)])
        if "boolean" in kinds and value.lower() in ("yes", "no", "on", "off"):
            return f"write {'true' if value.lower() in ('yes', 'on') else 'false'}"
        if "object" in kinds and "path" in schema.get("properties", {}):
            return f"write {{path: {value}}}"
        if "number" in kinds or "integer" in kinds:
            return numbers.meant(value, partial(_fits, schema))
    if "number" in kinds and isinstance(value, (int, float)) and not isinstance(value, bool):
        return numbers.as_share(value, partial(_fits, schema))
    if kinds in (["string"], ["string", "null"]) and isinstance(value, (int, float)):
        return "put a text that looks like a number, true or false in quotes"
    if "array" in kinds and isinstance(value, str):
        return f"write [{value}]"
    if path == ("passes",) and isinstance(value, dict):
        return "begin each pass with '- '"
    return None


def _fits(schema: Schema, value: float) -> bool:
    return bool(Validator(schema).is_valid(value))
