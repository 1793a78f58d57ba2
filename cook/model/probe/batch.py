"""Batches as models take them: tensors by name, with an example a row."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

ROWS = "rows"
"""The key of a batch under which the numbers of its examples in the data set stand; no model gets it."""


def examples_in(batch: Mapping[str, Tensor]) -> int:
    """How many examples there are: a tensor of one row may be told once for all of them (positions)."""
    return max(len(value) for value in batch.values() if value.ndim)


def take(batch: Mapping[str, Tensor], rows: slice | Tensor) -> dict[str, Tensor]:
    """Some of the examples; what is told once for all stays.

    Args:
        rows: a slice, or their numbers, int64.
    """
    count, found = examples_in(batch), dict(batch)
    for name, value in batch.items():
        if value.ndim and len(value) == count:
            found[name] = value[rows.to(value.device) if isinstance(rows, Tensor) else rows]
    return found
