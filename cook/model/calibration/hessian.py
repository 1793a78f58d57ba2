"""The inverse Hessian of a layer-wise least-squares problem, as SparseGPT and GPTQ need it.

For outputs `W X` the Hessian of the squared error by a row of W is `2 X X^T`; its Gram matrix is gathered by
`cook.model.calibration.statistics.Gram`.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
