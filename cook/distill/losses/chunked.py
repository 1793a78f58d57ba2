"""Distances between logits over large vocabularies, a few rows at a time.

Written plainly, the loss of a language model holds the selected rows, their softmax and its gradient in
float32, for the student and for the teacher: many times the logits themselves. Here the loss and the
student's gradient are made together, chunk by chunk, while going forward; what remains for the backward
pass is the gradient in the logits' own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

CHUNK = 16 * 2**20
"""Bytes that one float32 copy of a chunk takes; with what the allocator keeps, ten or so are in memory."""

Rows = Tensor | None
"""Which rows count, shaped as the logits without their last axis. None: all of them, the loss is their mean.
Bool: the mean over those that are true. Floating: the weight of each row, the loss is the weighted sum; rows
of weight 0 are not looked at."""


def soft_cross_entropy(
    student: Tensor,
    teachers: Tensor | Sequence[Tensor],
    temperature: float = 1.0,
    *,
    weights: Sequence[float] | None = None,
    rows: Rows = None,
) -> Tensor:
    """`T^2 * KL(p || softmax(student / T))` over rows, p the `mixture` of the teachers.

    The factor T^2 keeps the size of the gradient when the temperature changes (Hinton et al. 2015,
    section 2.1). The teacher's entropy is subtracted, so a perfect student has loss 0. A class that the
    teacher rules out (a logit of -inf) adds nothing, whatever the student says of it.

    Args:
        student: logits [rows..., classes].
        teachers: one teacher's logits, or those of several, in the student's shape and any dtype. They get
            no gradient.
        temperature: above 0.
        weights: one a teacher, see `mixture`.
        rows: see `Rows`; [rows...].

    Returns:
        A scalar in float32 (float64 for a student in float64), 0 when no row counts. It can be
        differentiated once, not twice.

    Raises:
        ValueError: for shapes that differ, or for weights that `mixture` refuses.
    """
    several, shares = _teachers(student, teachers, weights)

    def distance(guess: Tensor, *target: Tensor) -> tuple[Tensor, Tensor]:
        wanted = mixture(target, shares, temperature).to(guess.dtype)
        guess = functional.log_softmax(guess.div_(temperature), dim=-1)
        share = wanted.exp()
        # Neither log is finite where both rule a class out: 0 * log 0 is 0.
        loss = wanted.sub_(guess).mul_(share).masked_fill_(share == 0, 0).sum(-1)
        return loss * temperature**2, guess.exp_().sub_(share)

    return chunked(Distance(distance, slope=temperature, room=ROOM), student, several, rows)


def mean_square(
    student: Tensor,
    teachers: Tensor | Sequence[Tensor],
    temperature: float = 1.0,
    *,
    weights: Sequence[float] | None = None,
    rows: Rows = None,
) -> Tensor:
    """The mean over classes, and over rows, of `((student - teacher) / T)^2`.

    Several teachers count as the weighted mean of their logits. Classes that both rule out (-inf) are equal.
    Arguments, result and errors are those of `soft_cross_entropy`.
    """
    several, shares = _teachers(student, teachers, weights)

    def distance(guess: Tensor, *target: Tensor) -> tuple[Tensor, Tensor]:
        wanted = target[0].to(guess.dtype)
        if len(target) > 1:
            wanted = wanted * shares[0]
            for each, share in zip(target[1:], shares[1:], strict=True):
                wanted.add_(each, alpha=share)
        gap = (guess - wanted).masked_fill_(guess == wanted, 0)
        return (gap / temperature).square_().mean(-1), gap

    slope = 2 / (temperature**2 * student.shape[-1])
    return chunked(Distance(distance, slope, room=1.0), student, several, rows)


def mixture(
    teachers: Sequence[Tensor], weights: Sequence[float] | None = None, temperature: float = 1.0
) -> Tensor:
    """The log-probabilities of several teachers together: the weighted mean of softmax(logits / T).

    Args:
        teachers: logits [..., classes], all of one shape.
        weights: one a teacher, at least 0 and not all 0; only their ratios count. None: all equal.
        temperature: above 0.

    Returns:
        [..., classes] in float32 (float64 when the first teacher is).

    Raises:
        ValueError: for no teacher, another number of weights than of teachers, a negative weight, all 0.
    """
    joint = None
    for logits, share in zip(teachers, _shares(len(teachers), weights), strict=True):
        if share == 0:
            continue
        own = functional.log_softmax(logits.to(_at_least_float32(logits)) / temperature, dim=-1)
        if share != 1:
            own += math.log(share)
        joint = own if joint is None else torch.logaddexp(joint, own, out=joint)
    assert joint is not None  # the shares add up to 1
    return joint


class Distance(NamedTuple):
    """What `chunked` sums.

    Attributes:
        of: (student's rows [n, classes], each target's rows) -> (losses [n], gradient [n, classes]): the
            gradient of a row's loss is `slope` times that. The student's rows are a copy in at least
            float32 that it may overwrite.
        slope: what all gradients have in common.
        room: a power of two by which the gradient may grow without leaving float16.
    """

    of: Callable[..., tuple[Tensor, Tensor]]
    slope: float
    room: float


ROOM = 2.0**14
"""For gradients within -1 and 1, which a vocabulary makes smaller than float16 can hold."""


def chunked(distance: Distance, student: Tensor, targets: Sequence[Tensor], rows: Rows = None) -> Tensor:
    """The mean (or weighted sum, see `Rows`) of a distance over the rows that count, differentiable once.

    Args:
        distance: of some rows.
        student: logits [rows..., classes].
        targets: tensors [rows..., ...] of which `distance` gets the same rows. They get no gradient.
        rows: [rows...].

    Raises:
        ValueError: for rows of another shape than the student's.
    """
    lead = student.shape[:-1]
    for each in (*targets, *([] if rows is None else [rows])):
        if not lead or each.shape[: len(lead)] != lead or (each is rows and each.shape != lead):
            raise ValueError(f"logits {tuple(student.shape)} do not go with rows {tuple(each.shape)}")
    learns = torch.is_grad_enabled() and student.requires_grad
    loss: Tensor = _Chunked.apply(student, rows, distance, learns, *targets)
    return loss


class _Chunked(torch.autograd.Function):
    """`_walk`, whose gradient the backward pass only scales, in place, and gives away."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, rows: Rows, distance: Distance, learns: bool, *targets: Tensor
    ) -> Tensor:
        ctx.distance = distance
        loss, ctx.gradient, ctx.factor = _walk(distance, student, targets, rows, learns)
        ctx.save_for_backward(student, rows, *targets)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second time, through a graph that was retained: the first was given away
            student, rows, *targets = ctx.saved_tensors
            _, gradient, _ = _walk(ctx.distance, student, targets, rows, True)
        factor = upstream * ctx.factor
        for part in gradient.view(-1).split(CHUNK // 4):
            # In float32: the factor alone may be too small or too large for float16.
            part.copy_(part.to(factor.dtype).mul_(factor))
        return gradient, *[None] * (len(ctx.needs_input_grad) - 1)


def _walk(
    distance: Distance, student: Tensor, targets: Sequence[Tensor], rows: Rows, learns: bool
) -> tuple[Tensor, Tensor | None, float]:
    """The loss, and its gradient over the student's logits divided by a factor, and that factor.

    The factor is a power of two that puts the gradient in the middle of float16's range, as a loss scale
    does for what is computed from the loss: the 1 / rows and the probabilities are tiny together.
    """
    dtype = _at_least_float32(student)
    if rows is None:
        rows = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)
    index = rows.nonzero(as_tuple=True)
    count = len(index[0])
    weights = rows[index].to(dtype)
    if not rows.is_floating_point():
        weights /= max(count, 1)
    largest = float(weights.abs().amax()) if count else 1.0
    mantissa, exponent = math.frexp(largest * distance.slope)
    stored = weights * (mantissa * distance.room / largest)
    factor = math.ldexp(1.0, exponent) / distance.room
    loss = weights.new_zeros(())
    gradient = torch.zeros(student.shape, dtype=student.dtype, device=student.device) if learns else None
    for part, take in pieces(index, student.shape[-1]):
        losses, slopes = distance.of(student[take].to(dtype), *(each[take] for each in targets))
        loss += (losses * weights[part]).sum()  # no dot: autocast would make it bfloat16
        if gradient is not None:
            gradient[take] = slopes.mul_(stored[part, None]).to(student.dtype)
        del slopes  # before the next part needs as much
    return loss, gradient, factor


def pieces(index: tuple[Tensor, ...], classes: int) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """The positions of chosen rows, as `nonzero` tells them, in parts of `CHUNK` bytes a float32 copy."""
    size = max(1, CHUNK // (4 * classes))
    for start in range(0, len(index[0]), size):
        part = slice(start, start + size)
        yield part, tuple(axis[part] for axis in index)


def _teachers(
    student: Tensor, teachers: Tensor | Sequence[Tensor], weights: Sequence[float] | None
) -> tuple[list[Tensor], list[float]]:
    """The teachers that count, and their shares."""
    several = [teachers] if isinstance(teachers, Tensor) else list(teachers)
    for each in several:
        if each.shape != student.shape:
            raise ValueError(
                f"a teacher's logits are {tuple(each.shape)}, the student's {tuple(student.shape)}"
            )
    pairs = [
        (each, share) for each, share in zip(several, _shares(len(several), weights), strict=True) if share
    ]
    return [each for each, _ in pairs], [share for _, share in pairs]


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    weights = [1.0] * count if weights is None else weights
    if not count or len(weights) != count or min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"{count} teachers need as many weights, at least 0 and not all 0: {list(weights)}")
    return [weight / sum(weights) for weight in weights]


def _at_least_float32(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)
