"""Linear layers that are made of several: where the rows and the columns of the whole live.

A composite has `in_features`, `out_features` and `faces(axis, spans)`: which modules inside of it have its
rows (`out`) or columns (`in`), and what of theirs is what units own of the whole. The linear layers inside
are plain ones, which any pass finds by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from cook.model.nn import linear, surgery

Spans = tuple[tuple[int, int], ...]
"""(start, size) of what units own, as in `cook.model.arch.units.Part`."""


def places(model: nn.Module, name: str, axis: str, spans: Spans) -> Iterator[tuple[str, Spans]]:
    """Where rows (`out`) or columns (`in`) of a module live: the module itself, or what it is made of.

    Args:
        spans: (start, size) of what a unit owns of it.

    Raises:
        CookError: units that reach over parts of a fused layer in another way than its heads do.
    """
    module: Any = surgery.get(model, name)
    if not linear.is_composite(module):
        yield name, spans
        return
    for inner, own in module.faces(axis, spans):
        yield from places(model, f"{name}.{inner}", axis, own)


def whole(model: nn.Module, name: str) -> str:
    """The composite that a module is a part of; its own name if it is of none."""
    above = name.rpartition(".")[0]
    while above and linear.is_composite(model.get_submodule(above)):
        name, above = above, above.rpartition(".")[0]
    return name
