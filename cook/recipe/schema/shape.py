"""What a schema says of a value: its short forms written out, its defaults, its annotated places."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from cook.options import Schema
from cook.recipe.schema.sections import SECTIONS
from cook.recipe.text.place import Path

_MAY_BE_EMPTY = {*SECTIONS, "passes"} - {"version"}


def normal(value: Any) -> Any:
    """A recipe's value with its short forms written out; anything else comes back as it is.

    `- distill.logits` and `- distill.logits:` become `- distill.logits: {}`, `teacher: self` becomes
    `teacher: {path: self}`, a list of one teacher that one, its `cache: true` the mapping of no options,
    and a section with nothing in it is as if it were not there.
    """
    if not isinstance(value, dict):
        return value
    result = {key: item for key, item in value.items() if item is not None or key not in _MAY_BE_EMPTY}
    if "teacher" in result:
        result["teacher"] = _teachers(result["teacher"])
    if isinstance(result.get("passes"), list):
        result["passes"] = [_pass(item) for item in result["passes"]]
    return result


def _teachers(given: Any) -> Any:
    if isinstance(given, list):
        listed = [_teacher(item) for item in given]
        return listed[0] if len(listed) == 1 and isinstance(listed[0], dict) else listed
    return _teacher(given)


def _teacher(item: Any) -> Any:
    if isinstance(item, str):
        return {"path": item}
    if isinstance(item, dict) and item.get("cache") is True:
        return {**item, "cache": {}}
    return item


def _pass(item: Any) -> Any:
    if isinstance(item, str):
        return {item: {}}
    if isinstance(item, dict) and len(item) == 1:
        return {name: {} if options is None else options for name, options in item.items()}
    return item


def properties(schema: Schema) -> Schema:
    """The known keys of the object that a schema describes, by itself or in one of its forms."""
    forms = [schema, *schema.get("anyOf", ())]
    return next((form["properties"] for form in forms if "properties" in form), {})


def _items(schema: Schema) -> Schema | None:
    forms = [schema, *schema.get("anyOf", ())]
    return next((form["items"] for form in forms if "items" in form), None)


def at(schema: Schema, path: Path) -> Schema | None:
    """The part of a schema that describes a path, or None when it knows no such thing."""
    found: Schema | None = schema
    for part in path:
        if found is None:
            return None
        found = _items(found) if isinstance(part, int) else properties(found).get(part)
    return found


def takes_null(schema: Schema) -> bool:
    """Whether null is one of the values that a schema permits."""
    if "enum" in schema:
        return None in schema["enum"]
    kinds = schema.get("type", [])
    forms = schema.get("anyOf", ())
    return "null" in ([kinds] if isinstance(kinds, str) else kinds) or any(takes_null(form) for form in forms)


def walk(schema: Schema, value: Any, path: Path = ()) -> Iterator[tuple[Path, Schema, Any]]:
    """Every value that the schema knows, with its path and its part of the schema."""
    yield path, schema, value
    if isinstance(value, dict):
        known = properties(schema)
        for key, item in value.items():
            if key in known:
                yield from walk(known[key], item, (*path, key))
    elif isinstance(value, list) and (inner := _items(schema)) is not None:
        for index, item in enumerate(value):
            yield from walk(inner, item, (*path, index))


def fill(schema: Schema, value: Any) -> Any:
    """A copy of a checked value with every default filled in, keys in the order of the schema."""
    if isinstance(value, dict):
        known = properties(schema)
        result = {}
        for key, inner in known.items():
            if key in value:
                result[key] = fill(inner, value[key])
            elif "default" in inner:
                result[key] = fill(inner, inner["default"])
        rest = {key: copy.deepcopy(item) for key, item in value.items() if key not in known}
        return {**result, **rest}
    if isinstance(value, list):
        inner_items = _items(schema) or {}
        return [fill(inner_items, item) for item in value]
    if isinstance(value, float) and value.is_integer() and _whole(schema):
        return int(value)  # JSON Schema takes 32.0 for an integer; range() does not
    return value


def _whole(schema: Schema) -> bool:
    kinds = schema.get("type", [])
    return "integer" in kinds and "number" not in kinds
