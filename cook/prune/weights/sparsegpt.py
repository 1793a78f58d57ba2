"""SparseGPT: what stays makes up for what goes, column by column (Frantar and Alistarh 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from cook.model.nn.masks import lowest
from cook.prune.weights.pattern import pattern_mask

BLOCK = 128
"""Columns whose mask is chosen at once, after the columns before them were made up for."""
LEAF = 16
"""Columns that are corrected one by one; further ones wait for the product of so many at once."""


def sparsegpt(
    weight: Tensor,
    factor: Tensor,
    *,
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Prune a weight and correct what stays, so that the layer's outputs change little (algorithm 1).

    Args:
        weight: [out, in].
        factor: [in, in], from `cook.model.calibration.hessian.inverse_factor`.
        sparsity: the share to drop: exactly `round(sparsity * out * in)`, the lowest `w^2 / U_jj^2` of each
            block of columns, ties in order.
        pattern: (N, M) to keep N of every M of a row instead; `in` is a multiple of M.
        block: columns of a block, as many as fit whole groups of a pattern.

    Returns:
        The new weight [out, in] in the type of `factor`, zeros in place, and a bool mask, True where kept.
    """
    # Columns as rows: what is corrected at once then lies together in memory.
    columns = weight.detach().t().to(factor.dtype, memory_format=torch.contiguous_format, copy=True)
    width, out = columns.shape
    keep = torch.ones_like(columns, dtype=torch.bool)
    errors = torch.empty_like(columns)
    scale = factor.diagonal().square()[:, None]
    group = pattern[1] if pattern else 1
    block = max(group, block - block % group)
    leaf = max(group, LEAF - LEAF % group)

    for first in range(0, width, block):
        last = min(first + block, width)
        if pattern is None:
            scores = columns[first:last].square() / scale[first:last]
            # Rounded so that the blocks' counts add up to the matrix's.
            count = round(sparsity * out * last) - round(sparsity * out * first)
            keep[first:last] = ~lowest(scores.t(), count).t()
        for start in range(first, last, leaf):
            end = min(start + leaf, last)
            for index in range(start, end):
                if pattern is not None and index % group == 0:
                    ahead = slice(index, index + group)
                    scores = columns[ahead].square() / scale[ahead]
                    keep[ahead] = pattern_mask(scores.t(), *pattern).t()
                errors[index] = columns[index] * ~keep[index] / factor[index, index]
                columns[index:end].addr_(factor[index, index:end], errors[index], alpha=-1)
                columns[index] *= keep[index]
            columns[end:last].addmm_(factor[start:end, end:last].t(), errors[start:end], alpha=-1)
        columns[last:].addmm_(factor[first:last, last:].t(), errors[first:last], alpha=-1)
    return columns.t(), keep.t()
