"""Any tensor of the student learns from any tensor of the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from cook.distill.pairs import Intermediate, Pair, attended_mean, token_mean
from cook.distill.specs import HiddenSpec, is_scores
from cook.passes import Term, register

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy


def square_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of the squared differences over the last dimension."""
    return (student - teacher).square().mean(-1)


def absolute_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of the absolute differences over the last dimension."""
    return (student - teacher).abs().mean(-1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 minus the cosine of the angle between vectors along the last dimension."""
    return 1 - functional.cosine_similarity(student, teacher, dim=-1)


DISTANCES = {"mse": square_distance, "l1": absolute_distance, "cosine": cosine_distance}


def valid_mean(distances: Tensor, valid: Tensor) -> Tensor:
    """The mean over examples of what their valid tokens give.

    Args:
        distances: [batch, tokens] or [batch, heads, tokens]; one of another shape, as [batch], knows no
            tokens, and its plain mean is taken. A first dimension of 1 stands for all examples.
        valid: bool [batch, tokens].
    """
    if valid.dim() != 2 or distances.dim() not in (2, 3) or distances.shape[-1] != valid.shape[-1]:
        return distances.mean()
    by_token = distances.mean(1) if distances.dim() == 3 else distances
    return token_mean(by_token.expand_as(valid), valid)


@register
class DistillHidden(HiddenSpec, Intermediate):
    """Adds the distance of tensors, pair by pair, to the loss, as a mean over pairs."""

    def pairs(self, student: Anatomy, teacher: Anatomy) -> list[Pair]:
        return [
            Pair(student, teacher, not is_scores(student)) for student, teacher in self.options.map.items()
        ]

    def losses(self, context: Context) -> dict[str, Term]:
        values = []
        for pair in self.watched:
            student, teacher = self.compared(context, pair)
            distance = DISTANCES[self.options.distance]
            if is_scores(pair.student):
                distances = distance(student[..., None], teacher[..., None])
                values.append(attended_mean(distances, self.attended(context, pair, student)))
                continue
            if self.options.normalize:
                student, teacher = (
                    functional.normalize(student, dim=-1),
                    functional.normalize(teacher, dim=-1),
                )
            values.append(valid_mean(distance(student, teacher), context.valid_tokens(student, pair.student)))
        return {"hidden": Term(torch.stack(values).mean(), float(self.options.weight))}
