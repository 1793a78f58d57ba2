"""Batches of model inputs: tensors by name, with one example per row."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

ROWS = "rows"
"""The key of a batch for the dataset indices of its examples; it is not passed to models."""


def examples_in(batch: Mapping[str, Tensor]) -> int:
    """The number of examples; a tensor with one row may apply to all of them (positions)."""
    return max(len(value) for value in batch.values() if value.ndim)


def take(batch: Mapping[str, Tensor], rows: slice | Tensor) -> dict[str, Tensor]:
    """Select examples; tensors that apply to all are kept.

    Args:
        rows: a slice, or indices, int64.
    """
    count, found = examples_in(batch), dict(batch)
    for name, value in batch.items():
        if value.ndim and len(value) == count:
            found[name] = value[rows.to(value.device) if isinstance(rows, Tensor) else rows]
    return found
