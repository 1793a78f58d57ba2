"""Two factors in the place of a matrix [out, in]: the best of each rank, by what one wants to keep.

All three methods are one: `P P^T D W`, undone by `D^-1`, with P the first eigenvectors of `D W G W^T D`.
Plain SVD has D and G the identity, Fisher weights D, data G. The eigenproblem has min(out, in) rows: a tall
matrix is brought to `D W = Q R` first, and R takes its place. All of it is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

JITTERS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
"""Shares of the mean diagonal that are added until a Gram matrix is positive definite."""
ROUNDING = 10
"""How many epsilons of what it was summed in, relative to its norm, a Gram matrix is told from zero by."""
FLOOR = 0.01
"""Of the largest weight of a row; below it, undoing the weights would blow up what was left out."""


@dataclass(frozen=True)
class Spectrum:
    """The directions of a matrix, those first that are worth most.

    Attributes:
        worth: [k], k = min(out, in): the square of what is lost with each. Their sum is all there is; with
            data, a sum over all tokens.
        left: [out, k], and
        right: [k, in]: the matrix is `left @ right`.
        jitter: the share of the mean diagonal that the Gram matrix needed.
    """

    worth: Tensor
    left: Tensor
    right: Tensor
    jitter: float = 0.0

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """The factors (up [out, rank], down [rank, in]) that keep the first directions.

        Column i of `up` is as long as row i of `down`, so that both learn alike.
        """
        up, down = self.left[:, :rank], self.right[:rank]
        lengths = up.norm(dim=0), down.norm(dim=1)
        ratio = torch.where((lengths[0] > 0) & (lengths[1] > 0), lengths[1] / lengths[0], 1.0).sqrt()
        return up * ratio, down / ratio[:, None]

    def moving(self, sensitivity: Tensor) -> Tensor:
        """What the worth of each direction moves the model's output by, [k], squared and summed over tokens.

        As if what lies along a direction were unrelated to how much it moves there.

        Args:
            sensitivity: [out], from `cook.lowrank.sensitivity`.
        """
        return self.worth * (self.left.square().t() @ sensitivity.to(self.left))

    def lost(self, rank: int) -> float:
        """The share of all worth that is lost with this rank."""
        return float(self.worth[rank:].sum() / self.worth.sum().clamp_min(torch.finfo(torch.float64).tiny))


def svd(weight: Tensor) -> Spectrum:
    """Plain SVD: the least `||W - up down||`; worth are the squared singular values (Eckart and Young 1936).

    Args:
        weight: [out, in], of any float type.
    """
    basis, core = _core(weight.double())
    return _spectrum(basis, core, core @ core.t())


def fisher(weight: Tensor, information: Tensor) -> Spectrum:
    """FWSVD: the least `||D (W - up down)||`, with D the root of each row's summed Fisher information.

    Y.-C. Hsu et al., "Language model compression with weighted low-rank factorization", ICLR 2022, section 4.
    A row without information would be left out and its factor infinite: D is `FLOOR` of the largest at least.

    Args:
        weight: [out, in].
        information: [out], the sum over a row of the mean over examples of squared gradients.

    Raises:
        ValueError: no row has any, or some is no number.
    """
    weights = information.double().sqrt()
    if not bool(weights.isfinite().all()) or not bool(weights.any()):
        raise ValueError("no row has any Fisher information, or some is no number")
    weights = weights.clamp_min(FLOOR * float(weights.max()))
    found = svd(weights[:, None] * weight.double())
    return Spectrum(found.worth, found.left / weights[:, None], found.right)


def data(weight: Tensor, gram: Tensor) -> Spectrum:
    """The least `||(W - up down) X||` over calibration inputs X [in, tokens], of which G = X X^T is enough.

    P. Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models", NeurIPS 2021; X. Wang et
    al., "SVD-LLM", ICLR 2025, get the same factors by a Cholesky factor of G and its inverse. Here `W X` is
    projected on the first eigenvectors P of `W G W^T`: `up = P, down = P^T W`, and what is lost is the sum
    of the other eigenvalues. Where G is not positive definite it gets `jitter` times its mean diagonal, so
    that inputs which were never seen count as in plain SVD.

    Args:
        weight: [out, in].
        gram: [in, in], in the type that it was summed in.

    Raises:
        ValueError: numbers that are not finite.
    """
    basis, core = _core(weight.double())
    _check(gram)
    seen = gram.double()
    mean = _mean(seen.diagonal())
    jitter = _jitter(seen, mean * torch.eye(len(seen), dtype=seen.dtype, device=seen.device), gram.dtype)
    return _spectrum(basis, core, core @ seen @ core.t(), jitter, mean)


def data_of_outputs(weight: Tensor, gram: Tensor, squares: Tensor) -> Spectrum:
    """The same from what the layer gives: `(W X) (W X)^T` is smaller than G where in > out.

    Args:
        weight: [out, in], not taller than wide.
        gram: [out, out], the sum of (W x) (W x)^T over tokens.
        squares: a scalar, the sum of all squared inputs: the trace of G.
    """
    _, core = _core(weight.double())
    _check(gram)
    seen = gram.double()
    mean = _mean(squares.double() / core.shape[1])
    return _spectrum(None, core, seen, _jitter(seen, mean * (core @ core.t()), gram.dtype), mean)


def _core(matrix: Tensor) -> tuple[Tensor | None, Tensor]:
    """A matrix as (basis [out, k] of its columns, core [k, in]); no basis where k = out."""
    if not bool(matrix.isfinite().all()):
        raise ValueError("some of its weights are no finite numbers")
    rows, columns = matrix.shape
    return torch.linalg.qr(matrix) if rows > columns else (None, matrix)


def _spectrum(
    basis: Tensor | None, core: Tensor, moments: Tensor, jitter: float = 0.0, mean: float = 0.0
) -> Spectrum:
    """From the moments [k, k] of what the core gives, with what the jitter adds to them."""
    sought = moments + jitter * mean * (core @ core.t()) if jitter else moments
    values, vectors = torch.linalg.eigh((sought + sought.t()) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    if jitter:
        values = (vectors * (moments @ vectors)).sum(0)  # what is lost is lost on what was seen
    left = vectors if basis is None else basis @ vectors
    return Spectrum(values.clamp_min(0), left, vectors.t() @ core, jitter)


def _jitter(gram: Tensor, ridge: Tensor, summed: torch.dtype) -> float:
    """How much of a ridge makes a Gram matrix positive definite."""
    least = ROUNDING * torch.finfo(summed).eps * gram.norm()
    floor = least * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for share in JITTERS[:-1]:
        tried = gram + share * ridge - floor
        if bool(gram.any()) and not int(torch.linalg.cholesky_ex(tried).info):
            return share
    # All that rounding can ask for, unless the weight itself has no full rank.
    return JITTERS[-1]


def _mean(diagonal: Tensor) -> float:
    """Of the diagonal; 1 where no input was ever anything but zero, which then count alike."""
    return float(diagonal.mean()) or 1.0


def _check(gram: Tensor) -> None:
    if not bool(gram.isfinite().all()):
        raise ValueError("the inputs hold numbers that are not finite")
