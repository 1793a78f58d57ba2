"""The one JSON Schema of a recipe, and every mistake of a value against it.

The schema is assembled from the sections and from the options of the registered passes; it serves
the validator, editors (`cook schema`) and the documentation alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import ValidationError

from cook.errors import CookError, nearest
from cook.options import Schema
from cook.passes import Spec, declared
from cook.recipe.schema.rules import names, rules
from cook.recipe.schema.sections import SECTIONS
from cook.recipe.schema.shape import at, normal, properties
from cook.recipe.schema.wording import Validator, expected, found, leaves, value_problem
from cook.recipe.text.parse import Problems
from cook.recipe.text.place import Marks, Path, spell, where

_REQUIRED = ("version", "model", "output")
_ALTERNATIVES = "oneOf"


def schema(passes: Mapping[str, type[Spec]] | None = None, *, partial: bool = False) -> Schema:
    """The JSON Schema (draft 2020-12) of a recipe.

    Args:
        passes: the passes it knows; default: all registered ones.
        partial: whether a recipe may do without a model and an output, or a model without its path.
    """
    passes = declared() if passes is None else passes
    options = {
        name: {
            "type": ["object", "null"],
            "description": cls.summary,
            "properties": dict(cls.schema()),
            "required": list(cls.required),
            "additionalProperties": False,
        }
        for name, cls in passes.items()
    }
    item = {
        "anyOf": [
            {"type": "string", "enum": [name for name, cls in passes.items() if not cls.required]},
            {
                "type": "object",
                "properties": options,
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ]
    }
    model = {key: value for key, value in SECTIONS["model"].items() if not partial or key != _ALTERNATIVES}
    listed = {"type": "array", "items": item, "default": [], "description": "the methods, in order"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a recipe of cook",
        "type": "object",
        "properties": {**SECTIONS, "model": model, "passes": listed},
        "required": ["version"] if partial else list(_REQUIRED),
        "additionalProperties": False,
    }


def check(value: Any, marks: Marks, name: str, *, partial: bool = False) -> list[CookError]:
    """All mistakes of a recipe's value, in the order of its text.

    Args:
        value: what a text or a dict said, overrides applied.
        marks: the places in the text, by path; empty for a dict.
        name: what errors call the recipe.
        partial: whether a recipe of `version` and `passes` alone will do.
    """
    value = normal(value)
    passes = declared(names(value))
    return [error for _, error in problems(value, marks, name, passes, partial=partial)]


def problems(
    value: Any,
    marks: Marks,
    name: str,
    passes: Mapping[str, type[Spec]],
    *,
    partial: bool = False,
    known: Problems | None = None,
) -> Problems:
    """Like `check` for a normal value, each mistake with its path.

    Args:
        known: mistakes already found; what they are about is not reported again.
    """
    whole = schema(passes, partial=partial)
    known = list(known or ())
    errors = [leaf for error in Validator(whole).iter_errors(value) for leaf in leaves(error)]
    meant = {_meant(error) for error in errors if _is_unknown(error)}
    result = known + [
        problem
        for problem in _explained(errors, marks, name, whole, meant)
        if not any(problem[0][: len(path)] == path for path, _ in known)
    ]
    # Mistakes that are not reported, as they lie inside of another one, keep a pass from being built too.
    unsaid: list[Path] = [tuple(error.absolute_path) for error in errors]
    wrong = [*meant, *(path for path, _ in result)]
    if isinstance(value, dict):
        result += [
            (path, error)
            for path, error in rules(value, marks, name, passes, wrong=wrong + unsaid, partial=partial)
            if not any(path[: len(other)] == other for other in wrong)
        ]
    return _in_order(result, name)


def _in_order(result: Problems, name: str) -> Problems:
    """By line and column; what an override brought, which has neither, comes last."""

    def order(problem: tuple[Path, CookError]) -> tuple[int, ...]:
        place = (problem[1].where or "").removeprefix(name)
        found = re.match(r":([0-9]+):([0-9]+)", place)
        return (0, int(found[1]), int(found[2])) if found else (1,)

    return sorted(result, key=order)


def _explained(
    errors: list[ValidationError], marks: Marks, name: str, whole: Schema, meant: set[Path]
) -> Iterator[tuple[Path, CookError]]:
    crowded = {tuple(error.absolute_path) for error in errors if error.validator == "maxProperties"}
    told = set()
    for error in errors:
        path: Path = tuple(error.absolute_path)
        is_key = _is_unknown(error)
        if (is_key and path[:-1] in crowded) or (error.validator == "required" and path in meant):
            continue
        if error.validator == _ALTERNATIVES and _alternatives(error, path) & meant:
            continue
        message, hint = _words(error, path, whole, marks)
        if (path, message) not in told:
            told.add((path, message))
            yield path, CookError(message, where=where(marks, name, path, key=is_key), hint=hint)


def _is_unknown(error: ValidationError) -> bool:
    return error.validator == "additionalProperties" and error.message == "unknown"


def _known(error: ValidationError) -> list[str]:
    return list(error.schema.get("properties", {})) if isinstance(error.schema, dict) else []


def _meant(error: ValidationError) -> Path:
    """The known key that an unknown one was meant to be, as a path; the unknown one if none."""
    *around, key = error.absolute_path
    hint = nearest(str(key), _known(error))
    return (*around, hint.split("'")[1] if hint else key)


def _alternatives(error: ValidationError, path: Path) -> set[Path]:
    forms = error.validator_value if isinstance(error.validator_value, list) else []
    return {(*path, key) for form in forms for key in form.get("required", ())}


def _words(error: ValidationError, path: Path, whole: Schema, marks: Marks) -> tuple[str, str | None]:
    if _is_unknown(error):
        return _unknown_key(str(path[-1]), path, _known(error), whole)
    if error.validator == "required":
        inner = properties(error.schema if isinstance(error.schema, dict) else {}).get(str(path[-1]), {})
        return f"missing; expected {expected(inner)}", f"{path[-1]}: {inner.get('description', 'required')}"
    if error.validator == _ALTERNATIVES and (keys := _alternatives(error, path)):
        return _one_of([str(other[-1]) for other in sorted(keys, key=str)], error.instance, path, marks)
    if error.validator in ("minProperties", "maxProperties") and path[:1] == ("passes",) and len(path) == 2:
        return _crowd(error.instance, whole)
    if path == () and error.validator == "type":
        return f"found {found(error.instance)}, expected a mapping", "begin the recipe with 'version: 1'"
    return value_problem(error, path)


def _unknown_key(key: str, path: Path, known: list[str], whole: Schema) -> tuple[str, str | None]:
    is_pass = len(path) == 3 and path[0] == "passes"
    message = f"there is no pass {key!r}" if is_pass else f"unknown key {key!r}"
    hint = nearest(key, known)
    if hint is None and not is_pass:
        homes = [section for section, inner in properties(whole).items() if key in properties(inner)]
        hint = f"{key!r} belongs in {' or '.join(homes)}" if homes else None
    return message, hint or f"the {'passes' if is_pass else 'keys here'} are {', '.join(known)}"


def _one_of(keys: list[str], instance: Any, path: Path, marks: Marks) -> tuple[str, str | None]:
    given = [key for key in keys if isinstance(instance, dict) and instance.get(key) is not None]
    wanted = f"exactly one of {', '.join(keys[:-1])} and {keys[-1]}"
    # What --set brought is what is wanted: the other one has to go.
    written = [key for key in given if not ((mark := marks.get((*path, key))) and mark.origin)]
    hint = f"remove one, or add --set {spell((*path, (written or given)[0]))}=null" if given else None
    return f"found {' and '.join(given) or 'none'}, expected {wanted}", hint


def _crowd(item: Any, whole: Schema) -> tuple[str, str | None]:
    keys = list(item)
    message = f"found {len(keys)} keys ({', '.join(keys[:6])}), expected the name of one pass"
    inner = at(whole, ("passes", 0)) or {}
    first = next((key for key in keys if key in properties(inner)), None)
    if first is not None and set(keys) - {first} <= set(properties(properties(inner)[first])):
        return message, f"indent the options of {first} further than its name"
    return message, "begin each pass with '- '" if keys else "write the name of a pass"
