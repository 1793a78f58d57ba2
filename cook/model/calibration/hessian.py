"""The inverse Hessian of a layer-wise least-squares problem, as used by SparseGPT and GPTQ.

For outputs `W X` the Hessian of the squared error with respect to a row of W is `2 X X^T`; the Gram matrix
is accumulated by `cook.model.calibration.statistics.Gram`.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.01
DEAD = 1e-6
"""The fraction of the damping applied to inputs that are always zero."""
ATTEMPTS = 8


def inverse_factor(gram: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the inverse Hessian, `H^-1 = U^T U`.

    Args:
        gram: [in, in], the sum of x x^T over tokens: the Hessian up to an irrelevant factor.
        damping: added to the diagonal, as a fraction of its mean. Inputs that are always zero get almost
            none, so that their weights are pruned first.

    Returns:
        [in, in] in the dtype of `gram`, and the damping used: if the factorisation fails in float32,
        float64 is tried, and then ten times the damping.

    Raises:
        ValueError: values are not finite, or the factorisation fails with any damping.
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
