"""`--set train.epochs=1`: single values of a recipe replaced from outside of its text.

A target is written as errors write it: `train.epochs`, `passes[0].temperature`, or with the name of
the pass: `passes[prune.weights].sparsity` (`prune.weights#2` for its second use). The value is read
as YAML. `null` means null where the key can be null, and the key's default where it cannot;
`passes[1]=null` takes the pass out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from cook.errors import CookError, nearest
from cook.options import Schema
from cook.passes import declared
from cook.recipe.schema.build import schema
from cook.recipe.schema.rules import names, uses
from cook.recipe.schema.shape import at, normal, takes_null
from cook.recipe.schema.wording import found
from cook.recipe.text.parse import Problems, parse, raise_all
from cook.recipe.text.place import Mark, Marks, Path, spell, split


def apply(value: Any, marks: Marks, overrides: Iterable[str]) -> tuple[Any, Marks]:
    """A copy of a recipe's value with the overrides in it, and its marks, with their origin.

    Whether the keys and values are right is for the schema to say, which then names the override.

    Raises:
        CookError: for an override that cannot be read or leads nowhere; RecipeErrors for several.
    """
    overrides = list(overrides)
    if not overrides:
        return value, marks
    result, places = copy.deepcopy(normal(value)), dict(marks)
    problems: Problems = []
    if not isinstance(result, dict):
        return result, places
    whole = schema(declared(names(result)), partial=True)
    removed: list[int] = []
    for override in overrides:
        try:
            _one(result, places, override, whole, removed)
        except CookError as error:
            problems.append(((), error))
    raise_all(problems)
    return without_passes(result, places, removed)


def _one(
    result: dict[str, Any], places: dict[Path, Mark], override: str, whole: Schema, removed: list[int]
) -> None:
    origin = f"--set {override}"
    target, equals, text = override.partition("=")
    parts = split(target.strip())
    if not equals or not parts:
        hint = "write it as --set train.epochs=1 or --set 'passes[0].temperature=2'"
        raise CookError("expected a key, '=' and a value", where=origin, hint=hint)
    if not text.strip():
        raise CookError("there is no value after '='", where=origin, hint="write null for the default")
    new = _read(text, origin)
    path = locate(result, parts, origin)
    if len(path) == 2 and path[0] == "passes" and new is None:
        removed.append(int(path[1]))
        return
    around: Any = result
    for depth, part in enumerate(path[:-1]):
        around = _enter(around, part, path[: depth + 1], origin)
    last = path[-1]
    if not (
        isinstance(last, str) if isinstance(around, dict) else isinstance(last, int) and last < len(around)
    ):
        raise CookError(f"there is no {spell(path)}, only {found(around)} around it", where=origin)
    for old in [old for old in places if old[: len(path)] == path]:
        del places[old]
    places[path] = Mark(origin=origin)
    inner = at(whole, path)
    if isinstance(around, dict) and new is None and inner is not None and not takes_null(inner):
        around.pop(str(last), None)
    else:
        around[last] = new
        if path[0] in ("teacher", "passes"):
            result.update(normal(result))


def _read(text: str, origin: str) -> Any:
    try:
        return parse(text, origin).value
    except CookError as error:
        message = f"the value cannot be read: {error.message}"
        hint = error.hint or "put a text with special characters in quotes: 'key=\"*.weight\"'"
        raise CookError(message, where=origin, hint=hint) from None


def locate(value: Any, parts: Path, origin: str) -> Path:
    """The path in a normal value of what people write: a pass by position or name, its options
    directly under it; the only teacher as the first one.

    Raises:
        CookError: for a pass that the recipe does not have, or has more than once.
    """
    if parts[:2] == ("teacher", 0) and not (
        isinstance(value, dict) and isinstance(value.get("teacher"), list)
    ):
        return "teacher", *parts[2:]
    if len(parts) < 2 or parts[0] != "passes":
        return parts
    listed = value.get("passes") if isinstance(value, dict) else None
    items = list(uses(listed)) if isinstance(listed, list) else []
    wanted = parts[1]
    fits = [(path, name) for path, name, id in items if wanted in (path[1], name, id)]
    if len(fits) > 1:
        exact = ", ".join(f"passes[{path[1]}]" for path, _ in fits)
        raise CookError(
            f"the pass {wanted!r} stands {len(fits)} times", where=origin, hint=f"write one of {exact}"
        )
    if not fits:
        names = [id for _, _, id in items]
        hint = nearest(str(wanted), names) or f"its passes are {', '.join(names) or 'none'}"
        shown = f"no pass at position {wanted}" if isinstance(wanted, int) else f"no pass {wanted!r}"
        raise CookError(f"the recipe has {shown}", where=origin, hint=hint)
    path, name = fits[0]
    return path if len(parts) == 2 else (*path, name, *(parts[3:] if parts[2:3] == (name,) else parts[2:]))


def _enter(around: Any, part: str | int, path: Path, origin: str) -> Any:
    """The mapping or list at `part`, begun when nothing is there yet."""
    if isinstance(around, list) and isinstance(part, int) and part < len(around):
        inner = around[part]
    elif isinstance(around, dict) and isinstance(part, str):
        if around.get(part) is None:
            around[part] = {}
        inner = around[part]
    else:
        inner = None
    if not isinstance(inner, (dict, list)):
        shown = f"holds {found(inner)}" if inner is not None else "is not there"
        raise CookError(f"{spell(path)} {shown}, so nothing can be set in it", where=origin)
    return inner


def without_passes(result: dict[str, Any], places: Marks, removed: list[int]) -> tuple[dict[str, Any], Marks]:
    """The recipe without some of its passes, the marks of the others moved up."""
    if not removed:
        return result, places
    kept = [index for index in range(len(result["passes"])) if index not in removed]
    result["passes"] = [result["passes"][index] for index in kept]
    moved: dict[Path, Mark] = {}
    for path, mark in places.items():
        if len(path) < 2 or path[0] != "passes":
            moved[path] = mark
        elif path[1] in kept:
            at_new: Path = ("passes", kept.index(int(path[1])), *path[2:])
            moved[at_new] = mark
    return result, moved
