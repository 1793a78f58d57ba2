"""Blocks of weights that stay or go together: zeros that block-sparse kernels can skip."""

from __future__ import annotations

from torch import Tensor


def block_means(scores: Tensor, rows: int, columns: int) -> Tensor:
    """The mean score of each block.

    Args:
        scores: [out, in], multiples of `rows` and `columns`.

    Returns:
        [out / rows, in / columns].
    """
    return scores.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).mean((1, 3))


def over_blocks(keep: Tensor, rows: int, columns: int) -> Tensor:
    """What is kept of each block, for each of its weights: the shape of `block_means` back to [out, in]."""
    return keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
