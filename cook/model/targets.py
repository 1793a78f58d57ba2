"""From what a recipe names to modules of the model: globs, expressions, classes, anatomy words."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from cook.errors import CookError, nearest
from cook.model.anatomy import WORDS, Anatomy
from cook.model.linear import is_linear, stands_for


def matching(anatomy: Anatomy, pattern: str) -> list[str]:
    """The names of the modules that `pattern` matches, in the model's order.

    A pattern is an anatomy word (`ffn`, `layers[0:6]`), `re:` and a regular expression that must match
    the whole name, a class name (`Linear`), or a glob over names (`*.query`).

    Raises:
        CookError: when it matches nothing, with the nearest name.
    """
    if (roots := anatomy.roots(pattern)) is not None:
        if not roots:
            raise CookError(f"this {anatomy.kind} model has no {pattern}")
        return roots
    named = [(name, module) for name, module in anatomy.model.named_modules() if name]
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise CookError(f"{pattern!r} is no regular expression: {error}") from error
        found = [name for name, _ in named if expression.fullmatch(name)]
    else:
        found = [
            name
            for name, module in named
            if fnmatch.fnmatchcase(name, pattern) or pattern in (type(module).__name__, stands_for(module))
        ]
    if not found:
        classes = {type(module).__name__ for _, module in named}
        hint = nearest(pattern, [*WORDS, *classes, *(name for name, _ in named)])
        raise CookError(
            f"{pattern!r} matches no module of the model",
            hint=hint or f"use a glob over module names, 're:...', a class name, or {', '.join(WORDS)}",
        )
    return found


def select(
    anatomy: Anatomy,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None = None,
    *,
    kind: Callable[[nn.Module], bool] = is_linear,
    what: str = "linear layer",
) -> list[str]:
    """The modules of a `kind` that are matched, or lie inside of a match, by `include` and not `exclude`.

    Args:
        include: patterns; None stands for the layers of a known family, else for the base model.
        exclude: patterns; each must match something in the model.
        kind: which modules count; linear layers by default.
        what: its name in errors.

    Returns:
        Full module names, in the model's order, each once.

    Raises:
        CookError: when a pattern matches nothing, or nothing of that kind, or nothing is left.
    """
    of_kind = [name for name, module in anatomy.model.named_modules() if name and kind(module)]
    chosen: set[str] = set()
    for pattern in include or default(anatomy):
        inside = within(of_kind, matching(anatomy, pattern))
        if not inside:
            raise CookError(f"{pattern!r} matches no {what}", hint="what it matches is of another kind")
        chosen.update(inside)
    for pattern in exclude or ():
        chosen.difference_update(within(of_kind, matching(anatomy, pattern)))
    if not chosen:
        raise CookError(f"no {what} is left after the exclusions")
    return [name for name in of_kind if name in chosen]


def default(anatomy: Anatomy) -> list[str]:
    """What a pass acts on when not told: the layers; in an unknown family all of the base model."""
    if anatomy.family is not None:
        return ["layers"]
    return [f"{anatomy.prefix}*"]


def within(names: Iterable[str], roots: Iterable[str]) -> list[str]:
    """Those of `names` that are one of `roots` or lie below one."""
    above = set(roots)
    return [name for name in names if above.intersection(_ancestry(name))]


def _ancestry(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
