"""Options as typed dataclasses, and the JSON Schema that follows from them.

    @dataclass(frozen=True)
    class Options(Window):
        rate: float = option(0.2, "Probability that a forward skips a layer", above=0, below=1)

The type of a field, its default, its range and its line of help stand in one place: the schema that recipes
are checked against, the defaults, `cook passes` and the generated pages are made from them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

Schema = dict[str, Any]
T = TypeVar("T")

REQUIRED: Any = MISSING
"""The default of an option that a recipe must give."""

POINT_HELP = "a step (500), epochs ('1.5 epochs') or a share of the run ('30%')"
SCHEDULE_POINT: Schema = {
    "type": ["string", "integer"],
    "x-schedule-point": True,
    "description": POINT_HELP,
}
"""The schema of a point in the run."""
_NAMES = {
    "minimum": "minimum",
    "maximum": "maximum",
    "above": "exclusiveMinimum",
    "below": "exclusiveMaximum",
    "min_items": "minItems",
    "min_properties": "minProperties",
    "unique": "uniqueItems",
    "pattern": "pattern",
}
_TYPES: dict[Any, str] = {int: "integer", float: "number", bool: "boolean", str: "string"}


def option(
    default: Any, help: str, *, schema: Schema | None = None, nested: type | None = None, **limits: Any
) -> Any:
    """A field of an options dataclass.

    Args:
        default: REQUIRED for an option that must be given.
        help: one line: what the option sets, and what its values mean.
        schema: the JSON Schema of its values where the type says too little; otherwise made from the type.
        nested: a dataclass that its values may be besides what `schema` says.
        limits: `minimum`, `maximum`, `above`, `below` (exclusive), `min_items`, `min_properties`,
            `unique`, `pattern`.

    Raises:
        TypeError: for another limit.
    """
    if unknown := limits.keys() - _NAMES.keys():
        raise TypeError(f"there are no limits {sorted(unknown)}, only {', '.join(_NAMES)}")
    named = {_NAMES[name]: at for name, at in limits.items()}
    metadata = {"help": help, "schema": schema, "nested": nested, "limits": named}
    if isinstance(default, (dict, list)):
        raise TypeError("a default is shared by all instances: give a tuple or None")
    return field(metadata=metadata) if default is REQUIRED else field(default=default, metadata=metadata)


def schedule_point(default: str | int | None, help: str) -> Any:
    """An option that is a point in the run; None where it may be left out."""
    kinds = [*SCHEDULE_POINT["type"], "null"] if default is None else SCHEDULE_POINT["type"]
    return option(default, help, schema={**SCHEDULE_POINT, "type": kinds})


@cache
def schema_of(cls: type) -> Schema:
    """The JSON Schema of each option of a dataclass, its own first and then those of its bases."""
    hints = typing.get_type_hints(cls)
    return {each.name: _schema(each, hints[each.name]) for each in _ordered(cls)}


def required(cls: type) -> tuple[str, ...]:
    """The options that a recipe must give."""
    return tuple(each.name for each in _ordered(cls) if each.default is MISSING)


def build(cls: type[T], given: Mapping[str, Any]) -> T:
    """An instance of an options dataclass from values that its schema has let through.

    Lists become tuples and mappings of nested dataclasses instances of these; absent options get defaults.
    """
    hints = typing.get_type_hints(cls)
    return cls(**{name: _typed(hints[name], value) for name, value in given.items()})


def plain(options: Any) -> Any:
    """An options instance, or a value of one, as JSON values."""
    if is_dataclass(options):
        return {each.name: plain(getattr(options, each.name)) for each in _ordered(type(options))}
    if isinstance(options, Mapping):
        return {key: plain(value) for key, value in options.items()}
    return [plain(each) for each in options] if isinstance(options, (list, tuple)) else options


def _ordered(cls: Any) -> list[Any]:
    """The fields of a dataclass, those of the class itself before those of its bases."""
    by_name = {each.name: each for each in fields(cls)}
    names = [name for each in cls.__mro__ for name in vars(each).get("__annotations__", {})]
    return [by_name[name] for name in dict.fromkeys(names) if name in by_name]


def _schema(each: Any, hint: Any) -> Schema:
    given = each.metadata["schema"]
    found = {**(of_type(hint) if given is None else given), **each.metadata["limits"]}
    if (nested := each.metadata["nested"]) is not None:
        found = {**found, "anyOf": [*found["anyOf"], section(nested)]}
    if each.default is not MISSING:
        found["default"] = plain(each.default)
    return {**found, "description": each.metadata["help"]}


def of_type(hint: Any) -> Schema:
    """The JSON Schema of a type: numbers, texts, choices, tuples, mappings, nested dataclasses, `| None`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _or_null(args)
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": of_type(args[0])}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": of_type(args[1])}
    if is_dataclass(hint):
        return section(typing.cast("type", hint))
    if hint not in _TYPES:
        raise TypeError(f"an option cannot be a {hint}: give its schema")
    return {"type": _TYPES[hint]}


def section(cls: type, **more: Any) -> Schema:
    """The JSON Schema of a mapping whose keys are the fields of a dataclass; its docstring describes it.

    Args:
        more: further keywords.
    """
    return {
        "type": "object",
        "description": (cls.__doc__ or "").split("\n")[0].removesuffix("."),
        "properties": schema_of(cls),
        "required": list(required(cls)),
        "additionalProperties": False,
        **more,
    }


def _or_null(args: tuple[Any, ...]) -> Schema:
    inner = [each for each in args if each is not type(None)]
    if len(inner) > 1:
        raise TypeError(f"several types {inner}: give the option its schema")
    found = of_type(inner[0])
    if len(inner) == len(args):
        return found
    if "enum" in found:
        return {**found, "enum": [*found["enum"], None]}
    return {**found, "type": [found["type"], "null"]}


def _typed(hint: Any, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_typed(Any, each) for each in value)
    if isinstance(value, Mapping):
        kinds = [each for each in (hint, *get_args(hint)) if is_dataclass(each)]
        if kinds:
            return build(typing.cast("type", kinds[0]), value)
        return {key: _typed(Any, each) for key, each in value.items()}
    return value


TARGETS = "module globs, 're:...', class names or words (attention, ffn, embeddings, head, layers[0:6])"


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a pass that has none."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Options of passes that act on modules of the model."""

    include: tuple[str, ...] | None = option(None, f"Modules to act on: {TARGETS}", min_items=1)
    exclude: tuple[str, ...] | None = option(
        None, "Modules to leave out of them, in the same words", min_items=1
    )


@dataclass(frozen=True, kw_only=True)
class Start:
    """Options of passes that act from some step on."""

    start: str | int = schedule_point("0%", f"When the pass begins: {POINT_HELP}")


@dataclass(frozen=True, kw_only=True)
class Window(Start):
    """Options of passes that act during some of the steps."""

    end: str | int = schedule_point("100%", f"When the pass ends: {POINT_HELP}")


CORPORA_HELP = (
    "plain text files with one text per line, or tables with the text columns of the data; null uses the"
    " texts of the training and validation data"
)


def corpora(use: str) -> Any:
    """An option that names text files.

    Args:
        use: what the texts are for, in words.
    """
    items = {"type": "string", "minLength": 1, "x-path": True, "x-path-kind": "recipe"}
    schema = {"type": ["array", "null"], "items": items, "minItems": 1}
    return option(None, f"{use}: {CORPORA_HELP}", schema=schema)
