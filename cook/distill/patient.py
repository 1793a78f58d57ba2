"""Patient distillation: hidden states of lower layers learn their direction (Sun et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from cook.distill.pairs import Intermediate, Pair, last, token_mean, uniform
from cook.distill.specs import PatientSpec
from cook.passes import Term, register

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy


def direction_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared distance of two vectors after scaling both to length 1, divided by their width.

    Sun et al. 2019, equation 7, with the mean over the width in the place of the sum: the same weight
    then serves models of any width.

    Args:
        student, teacher: [..., width].

    Returns:
        [...].
    """
    difference = functional.normalize(student, dim=-1) - functional.normalize(teacher, dim=-1)
    return difference.square().mean(-1)


def first_token(tensor: Tensor, valid: Tensor) -> Tensor:
    """Each example's first token that is not padding: [batch, width] of [batch, tokens, width].

    Args:
        valid: bool [batch, tokens].
    """
    rows = torch.arange(len(tensor), device=tensor.device)
    return tensor[rows, valid.int().argmax(1)]


def skip(students: int, teachers: int) -> list[int]:
    """Every k-th teacher layer, the top one left out: 6 of 12 learn from 1, 3, 5, 7, 9."""
    return uniform(students, teachers)[:-1]


def last_but_top(students: int, teachers: int) -> list[int]:
    """The last teacher layers, the top one left out: 6 of 12 learn from 6, 7, 8, 9, 10."""
    return last(students - 1, teachers - 1)


STRATEGIES = {"skip": skip, "last": last_but_top}


@register
class DistillPatient(PatientSpec, Intermediate):
    """Adds the distance between directions of hidden states to the loss, as a mean over layers."""

    def pairs(self, student: Anatomy, teacher: Anatomy) -> list[Pair]:
        layers = self.layers(STRATEGIES, student, teacher)
        if not layers:
            message = f"{self.options.layers!r} leaves the top layer out, and the student has no other"
            raise self.error(message, option="layers", hint=f"such as layers: [{len(teacher.layers) - 1}]")
        return [Pair(f"layers[{one}].output", f"layers[{other}].output") for one, other in layers]

    def unequal(self, student: Any, teacher: Any) -> str | None:
        if student[-1] == teacher[-1]:
            return None
        return "directions need one width; distill.tinybert and distill.hidden learn a projection"

    def losses(self, context: Context) -> dict[str, Term]:
        values = []
        for pair in self.watched:
            student, teacher = self.compared(context, pair)
            valid = context.valid_tokens(student, pair.student)
            if self.options.tokens == "first":
                values.append(
                    direction_distance(first_token(student, valid), first_token(teacher, valid)).mean()
                )
            else:
                values.append(token_mean(direction_distance(student, teacher), valid))
        return {"patient": Term(torch.stack(values).mean(), float(self.options.weight))}
