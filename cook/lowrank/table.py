"""The best table of a lower rank: a truncated singular value decomposition of many rows of few numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 2**14
"""Rows that are in double precision at once."""


class Factors(NamedTuple):
    """Two factors of a table, in its type, and what their product lacks.

    Attributes:
        table: [rows, rank].
        factor: [rank, width].
        error: of the product, relative to the table, in the Frobenius norm.
    """

    table: Tensor
    factor: Tensor
    error: float


@torch.no_grad()
def factors(table: Tensor, rank: int, counts: Tensor | None = None) -> Factors:
    """The two factors whose product is nearest to a table, `U sqrt(S)` and `sqrt(S) V^T` of its SVD.

    No other product of this rank is nearer (Eckart and Young 1936); of equal rows the lengths of both
    factors' columns and rows are equal, so that neither learns faster. V comes from the Gram matrix
    [width, width] in double precision and U from V: nothing of rows x rows is made. The error is told down
    to about 1e-8.

    Args:
        table: [rows, width], finite.
        rank: from 1 to the width.
        counts: how much each row counts, [rows], not all 0: the sum of squared errors weighted with these is
            the least. None: all alike.
    """
    gram = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64, device=table.device)
    for rows, part in _chunks(table):
        gram += part.T @ (part if counts is None else part * counts[rows].to(part).unsqueeze(1))
    squares, vectors = torch.linalg.eigh(gram)
    lengths = squares[-rank:].flip(0).clamp_min(0).sqrt()
    right = vectors[:, -rank:].flip(1)
    # A direction that no row has needs no length.
    roots = torch.where(lengths > 0, lengths, 1.0).sqrt()
    left = torch.empty(len(table), rank, dtype=table.dtype, device=table.device)
    whole, kept = gram.new_zeros(()), gram.new_zeros(())
    for rows, part in _chunks(table):
        along = part @ right
        whole, kept = whole + part.square().sum(), kept + along.square().sum()
        left[rows] = (along / roots).to(table.dtype)
    lost = (1 - kept / whole).clamp_min(0) if whole > 0 else whole
    return Factors(left, (right * roots).T.to(table.dtype).contiguous(), float(lost.sqrt()))


def _chunks(table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(table), CHUNK):
        rows = slice(start, start + CHUNK)
        yield rows, table[rows].double()
