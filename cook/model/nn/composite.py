"""Linear layers composed of several modules: which inner modules hold their rows and columns.

A composite has `in_features`, `out_features` and `faces(axis, spans)`, which maps spans of its rows (`out`)
or columns (`in`) to spans of the inner modules that hold them. The inner linear layers are plain ones, which
any pass finds by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from cook.model.nn import linear, surgery

Spans = tuple[tuple[int, int], ...]
"""(start, size) of the rows or columns that units own, as in `cook.model.arch.units.Part`."""


def places(model: nn.Module, name: str, axis: str, spans: Spans) -> Iterator[tuple[str, Spans]]:
    """The modules that hold rows (`out`) or columns (`in`) of a module: itself, or the parts of a composite.

    Args:
        spans: (start, size) of what a unit owns of the module.

    Raises:
        CookError: units span the parts of a fused layer differently from its heads.
    """
    module: Any = surgery.get(model, name)
    if not linear.is_composite(module):
        yield name, spans
        return
    for inner, own in module.faces(axis, spans):
        yield from places(model, f"{name}.{inner}", axis, own)


def whole(model: nn.Module, name: str) -> str:
    """The outermost composite that contains a module; the module's own name if there is none."""
    above = name.rpartition(".")[0]
    while above and linear.is_composite(model.get_submodule(above)):
        name, above = above, above.rpartition(".")[0]
    return name
