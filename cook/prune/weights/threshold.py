"""What a threshold keeps: the highest scores, by an exact count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cook.model.nn.masks import lowest


def threshold_masks(scores: Sequence[Tensor], sparsity: float, scope: str = "global") -> list[Tensor]:
    """What to keep when the share `sparsity` of the lowest scores goes.

    Args:
        scores: tensors of any shapes; magnitudes for magnitude pruning (Han et al. 2015).
        sparsity: 0 to 1; exactly `round(sparsity * n)` are dropped, ties in order.
        scope: `global`, one threshold for all tensors together, or `layer`, one for each.

    Returns:
        A bool mask for each tensor, True where kept.
    """
    if scope == "layer":
        return [~lowest(score, round(sparsity * score.numel())) for score in scores]
    if scope != "global":
        raise ValueError(f"no scope {scope!r}; there are global and layer")
    together = torch.cat([score.flatten() for score in scores])
    keep = ~lowest(together, round(sparsity * together.numel()))
    parts = keep.split([score.numel() for score in scores])
    return [part.view_as(score) for part, score in zip(parts, scores, strict=True)]


def among(
    scores: Sequence[Tensor], sparsity: float, scope: str, leaving: Sequence[Tensor | None]
) -> list[Tensor]:
    """`threshold_masks` of what does not leave; what leaves is kept.

    Args:
        leaving: bool, in the shape of each score; None where nothing leaves.
    """
    pairs = zip(scores, leaving, strict=True)
    stays = [torch.ones_like(each, dtype=torch.bool) if gone is None else ~gone for each, gone in pairs]
    left = [each[some] for each, some in zip(scores, stays, strict=True)]
    found = zip(stays, threshold_masks(left, sparsity, scope), strict=True)
    return [torch.ones_like(some).masked_scatter_(some, keep) for some, keep in found]
