"""N:M patterns: of every M consecutive weights along a layer's input, N are kept (Mishra et al. 2021).

Kernels for sparse matrices skip such zeros; 2:4 is the pattern of NVIDIA's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pattern_mask(scores: Tensor, keep: int, group: int) -> Tensor:
    """What to keep so that every `group` consecutive ones of a row hold `keep`, the highest.

    Args:
        scores: [out, in], with `in` a multiple of `group`: magnitudes, for instance.
        keep: N of N:M, 1 to `group`; exactly so many are kept, and of equal ones the last.

    Returns:
        A bool mask [out, in], True where kept.
    """
    grouped = scores.unflatten(-1, (-1, group))
    lowest = grouped.argsort(dim=-1, stable=True)[..., : group - keep]
    return torch.ones_like(grouped, dtype=torch.bool).scatter_(-1, lowest, False).flatten(-2)
