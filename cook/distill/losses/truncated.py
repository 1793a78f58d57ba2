"""Teachers of which only the most likely classes were kept, as a cache keeps those of a large vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cook.distill.losses.chunked import ROOM, Distance, Rows, chunked, pieces


def top(logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest logits of each row, and the mass of all others.

    The mass is kept softened at the temperature of the loss: it does not follow from the mass at another
    one. So what is stored serves one temperature; those for another are made anew.

    Args:
        logits: [rows..., classes].
        k: at least 1; more than there are classes means all of them.
        temperature: above 0.

    Returns:
        values: the logits as they are [rows..., k], in their own dtype, the largest first.
        indices: their classes, int32 [rows..., k].
        rest: logsumexp(others / temperature), float32 (float64 for logits in float64) [rows...]; -inf when
            nothing was left out.
    """
    classes = logits.shape[-1]
    k = min(k, classes)
    lead = logits.shape[:-1]
    values = logits.new_empty(*lead, k)
    indices = torch.empty(*lead, k, dtype=torch.int32, device=logits.device)
    rest = torch.empty(lead, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    index = torch.ones(lead, dtype=torch.bool, device=logits.device).nonzero(as_tuple=True)
    for _, take in pieces(index, classes):
        chunk = logits[take]
        values[take], kept = chunk.topk(k, dim=-1)
        indices[take] = kept.int()
        others = chunk.to(rest.dtype).div_(temperature).scatter_(-1, kept, -torch.inf)
        rest[take] = others.logsumexp(-1)
    return values, indices, rest


def truncated_cross_entropy(
    student: Tensor,
    values: Tensor,
    indices: Tensor,
    rest: Tensor,
    temperature: float = 1.0,
    *,
    rows: Rows = None,
) -> Tensor:
    """`T^2 * KL` between teacher and student over the kept classes and one more, which is all others.

    Exact, at every temperature: the probabilities of the kept classes and of the others together, the
    teacher's and the student's, if `rest` was made at this same temperature. Not known: how the teacher
    divides the rest among its classes; the student is left to divide its own as it does. So the loss is at
    most `soft_cross_entropy` of the whole logits, and equals it, gradients too, where at most one class was
    left out or the student divides the rest as the teacher does. A `rest` made at another temperature is
    not noticed, and gives the others a wrong mass.

    Of several teachers that keep different classes, take the weighted mean of their losses: the cross-entropy
    is linear in the teacher, so the gradient is that of the `mixture`, as far as each is exact.

    Args:
        student: logits [rows..., classes].
        values, indices, rest: [rows..., k], [rows..., k], [rows...], of `top`. They get no gradient.
        temperature: that of `top`.
        rows: see `Rows`; [rows...].

    Returns:
        A scalar in float32 (float64 for a student in float64), 0 when no row counts. It can be
        differentiated once, not twice.

    Raises:
        ValueError: for shapes that do not belong together.
    """
    if values.shape != indices.shape or rest.shape != values.shape[:-1]:
        shapes = ", ".join(str(tuple(each.shape)) for each in (values, indices, rest))
        raise ValueError(f"values, indices and rest are {shapes}")

    def distance(guess: Tensor, values: Tensor, indices: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        softened = values.to(guess.dtype) / temperature
        wanted = functional.log_softmax(torch.cat([softened, rest.to(guess.dtype)[:, None]], -1), dim=-1)
        share = wanted.exp()
        place = indices.long()
        guess = functional.log_softmax(guess.div_(temperature), dim=-1)
        kept = guess.gather(-1, place)
        others = guess.scatter_(-1, place, -torch.inf)
        left = others.logsumexp(-1, keepdim=True)
        told = torch.cat([kept, left], -1)
        loss = ((wanted - told) * share).masked_fill_(share == 0, 0).sum(-1)
        gap = told.exp() - share
        # The gap of the rest goes to its classes as the student divides it; if it has none, nowhere.
        slopes = others.sub_(left.masked_fill(left == -torch.inf, 0)).exp_().mul_(gap[:, -1:])
        return loss * temperature**2, slopes.scatter_(-1, place, gap[:, :-1])

    targets = (values, indices, rest)
    return chunked(Distance(distance, slope=temperature, room=ROOM), student, targets, rows)
