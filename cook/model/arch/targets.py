"""Resolves recipe patterns to modules of the model: globs, regular expressions, classes, anatomy words."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from cook.errors import CookError, nearest
from cook.model.arch.anatomy import WORDS, Anatomy
from cook.model.arch.usage import read_elsewhere
from cook.model.nn.linear import is_linear, stands_for

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that passes never act on by design, and that plans do not list as left out."""


def matching(anatomy: Anatomy, pattern: str) -> list[str]:
    """The names of the modules that `pattern` matches, in the model's order.

    A pattern is an anatomy word (`ffn`, `layers[0:6]`), `re:` and a regular expression that must match
    the whole name, a class name (`Linear`), or a glob over names (`*.query`).

    Raises:
        CookError: nothing matches; the message names the nearest name.
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
    replaced: bool = False,
) -> list[str]:
    """The modules of a `kind` that match `include`, or lie inside a match, and do not match `exclude`.

    Args:
        include: patterns; None selects the layers of a known family, else the base model without its
            embeddings and its output head.
        exclude: patterns; each must match something in the model.
        kind: the modules to select; linear layers by default.
        what: the name of `kind` in errors.
        replaced: whether the pass replaces each module. Layers whose weight is read by other code are then
            left out, and refused if a pattern matches only such layers.

    Returns:
        Full module names, in the model's order, without duplicates.

    Raises:
        CookError: a pattern matches nothing, or nothing of that kind, or nothing is left.
    """
    of_kind = [name for name, module in anatomy.model.named_modules() if name and kind(module)]
    fixed = read_elsewhere(anatomy.model) if replaced else set()
    chosen: set[str] = set()
    for pattern in include or default(anatomy):
        matched = within(of_kind, matching(anatomy, pattern))
        inside = [name for name in matched if name not in fixed]
        if not inside:
            raise _nothing(anatomy, pattern, matched, what)
        chosen.update(inside)
    if include is None:
        chosen.difference_update(_outside(anatomy))
    for pattern in exclude or ():
        chosen.difference_update(within(of_kind, matching(anatomy, pattern)))
    if not chosen:
        raise CookError(f"no {what} is left after the exclusions")
    return [name for name in of_kind if name in chosen]


def left_out(
    anatomy: Anatomy,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    chosen: Sequence[str],
) -> str:
    """Describe the matched modules with matrices that a pass does not act on, for a plan.

    Args:
        include, exclude: patterns, as for `select`.
        chosen: the result of `select`.

    Returns:
        Nothing if all matrices are acted on.
    """
    model = anatomy.model
    roots = [name for pattern in include or default(anatomy) for name in matching(anatomy, pattern)]
    excluded = [name for pattern in exclude or () for name in matching(anatomy, pattern)]
    holders = [
        name
        for name, module in model.named_modules()
        if name and any(each.ndim > 1 for each in module.parameters(recurse=False))
    ]
    inside = set(within(holders, roots)) - set(within(holders, [*excluded, *chosen]))
    if include is None:
        inside -= _outside(anatomy)
    inside -= {
        name for name in inside if isinstance(model.get_submodule(name), (nn.Embedding, *CONVOLUTIONS))
    }
    if not inside:
        return ""
    kinds = sorted({type(model.get_submodule(name)).__name__ for name in inside})
    count = sum(
        each.numel() for name in inside for each in model.get_submodule(name).parameters(recurse=False)
    )
    total = sum(each.numel() for each in model.parameters())
    return f"left out: {', '.join(kinds)} with {count / total:.0%} of all parameters"


def default(anatomy: Anatomy) -> list[str]:
    """The default targets without `include`: the layers; in an unknown family the base model."""
    if anatomy.family is not None:
        return ["layers"]
    return [f"{anatomy.prefix}*"]


def _outside(anatomy: Anatomy) -> set[str]:
    """The embeddings and the output head, which are targets only if named."""
    model: Any = anatomy.model
    found = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    head = None
    with suppress(NotImplementedError, AttributeError):
        head = model.get_output_embeddings()
    return found | {name for name, module in model.named_modules() if module is head}


def _nothing(anatomy: Anatomy, pattern: str, matched: Sequence[str], what: str) -> CookError:
    """The error for a pattern that selects no targets."""
    if matched:
        message = f"the weight of {matched[0]} is read by other code than its own forward"
        return CookError(message, hint="it cannot be replaced: leave it out of `include`")
    model = anatomy.model
    subclasses = [
        name
        for name, module in model.named_modules()
        if name and isinstance(module, nn.Linear) and not is_linear(module)
    ]
    if found := within(subclasses, matching(anatomy, pattern)):
        kind = type(model.get_submodule(found[0])).__name__
        message = f"{found[0]} is a {kind}, whose forward is not that of a linear layer"
        return CookError(message, hint="it cannot be replaced: leave it out of `include`")
    return CookError(f"{pattern!r} matches no {what}", hint="what it matches is of another kind")


def within(names: Iterable[str], roots: Iterable[str]) -> list[str]:
    """The `names` that are one of `roots` or lie below one."""
    above = set(roots)
    return [name for name in names if above.intersection(_ancestry(name))]


def _ancestry(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
