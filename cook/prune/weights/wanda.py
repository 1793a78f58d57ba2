"""Wanda: a weight counts as much as its input is large (Sun et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor


def wanda_scores(weight: Tensor, squared_norms: Tensor) -> Tensor:
    """`|W_ij| * ||X_j||_2`, in float32 (equation 1).

    Args:
        weight: [out, in].
        squared_norms: [in], of each input over all tokens.

    Returns:
        [out, in].
    """
    return weight.detach().abs().float() * squared_norms.sqrt().float()


def row_masks(scores: Tensor, sparsity: float) -> Tensor:
    """What to keep when the share `sparsity` of the lowest scores of each row goes.

    Args:
        scores: [out, in].
        sparsity: 0 to 1; exactly `round(sparsity * in)` of each row are dropped, ties in order.

    Returns:
        A bool mask [out, in], True where kept.
    """
    count = round(sparsity * scores.shape[1])
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    # No sort: one selection a row, and of what equals the last of it the first in order.
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    dropped = scores < threshold
    ties = scores == threshold
    room = count - dropped.sum(1, keepdim=True)
    return ~(dropped | (ties & (ties.cumsum(1) <= room)))
