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
DAMPING = 0.01
DEAD = 1e-6
"""The share of the damping that an input which is always zero gets."""
ATTEMPTS = 8


def inverse_factor(gram: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the inverse Hessian, `H^-1 = U^T U`.

    Args:
        gram: [in, in], the sum of x x^T over tokens: the Hessian but for a factor that does not matter.
        damping: what is added to the diagonal, as a share of its mean. An input that is always zero gets
            next to nothing, so that its weights go first.

    Returns:
        [in, in] in the type of `gram`, and the damping that was needed: where float32 gives no factor,
        float64 is tried, and after that ten times the damping.

    Raises:
        ValueError: numbers that are not finite, or that no damping helps.
    """
    if not bool(gram.isfinite().all()):
        raise ValueError("the inputs hold numbers that are not finite")
    for attempt in range(ATTEMPTS):
        for dtype in dict.fromkeys((gram.dtype, torch.float64)):
            factor = _factor(gram.to(dtype), damping * 10**attempt)
            if factor is not None:
                return factor.to(gram.dtype), damping * 10**attempt
    raise ValueError("the Gram matrix of the inputs has no inverse")


def _factor(gram: Tensor, damping: float) -> Tensor | None:
    hessian = gram.clone()
    diagonal = hessian.diagonal()
    added = damping * diagonal.mean() if bool(diagonal.any()) else torch.ones_like(diagonal[0])
    diagonal += torch.where(diagonal == 0, added * DEAD, added)
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if failed:
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed or not bool(upper.isfinite().all()) else upper


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
        factor: [in, in], from `inverse_factor`.
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
