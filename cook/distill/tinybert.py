"""TinyBERT's intermediate losses: embeddings, hidden states, attention scores (Jiao et al. 2020).

Its two stages are windows of one run: this pass first, with `task_weight: 0`, then `distill.logits`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cook.distill.pairs import Intermediate, Pair, attended_mean, last, token_mean, uniform
from cook.distill.specs import TERMS, TinyBERTSpec
from cook.passes import Term, register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy

STRATEGIES = {"uniform": uniform, "last": last}


def state_distance(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """The mean square of `student - teacher` over width and valid tokens (equations 8 and 9).

    Args:
        student, teacher: [batch, tokens, width].
        valid: bool [batch, tokens].

    Returns:
        A scalar: the mean over examples.
    """
    return token_mean((student - teacher).square().mean(-1), valid)


def score_distance(student: Tensor, teacher: Tensor, attended: Tensor) -> Tensor:
    """The mean square of the difference of attention scores before the softmax (equation 7).

    Args:
        student, teacher: [batch, heads, tokens, tokens].
        attended: bool [batch, tokens, tokens]: the positions that count.

    Returns:
        A scalar: the mean over examples of the mean over heads and an example's positions.
    """
    return attended_mean((student - teacher).square(), attended)


@register
class DistillTinyBERT(TinyBERTSpec, Intermediate):
    """Adds the squared distances of embeddings, hidden states and attention scores to the loss.

    Each is a mean over layers, where the paper has a sum: weights then mean the same at any depth.
    """

    def pairs(self, student: Anatomy, teacher: Anatomy) -> list[Pair]:
        return [pair for pairs in self._by_part(student, teacher).values() for pair in pairs]

    def unequal(self, student: Sequence[int], teacher: Sequence[int]) -> str | None:
        if len(student) == 4 and student[1] != teacher[1]:
            return "scores are compared head by head: set parts: [embeddings, hidden]"
        return super().unequal(student, teacher)

    def losses(self, context: Context) -> dict[str, Term]:
        terms = {}
        for part, pairs in self._by_part(context.anatomy, self.teacher(context).anatomy).items():
            values = []
            for pair in pairs:
                student, teacher = self.compared(context, pair)
                if part == "attention":
                    attended = self.attended(context, pair, student)
                    values.append(score_distance(student, teacher, attended))
                else:
                    valid = context.valid_tokens(student, pair.student)
                    values.append(state_distance(student, teacher, valid))
            weight = float(self.options.weight) * float(getattr(self.options, part))
            terms[TERMS[part]] = Term(torch.stack(values).mean(), weight)
        return terms

    def _by_part(self, student: Anatomy, teacher: Anatomy) -> dict[str, list[Pair]]:
        layers = self.layers(STRATEGIES, student, teacher)
        every = {
            "embeddings": [Pair("embeddings.output", "embeddings.output")],
            "hidden": [Pair(f"layers[{one}].output", f"layers[{other}].output") for one, other in layers],
            "attention": [
                Pair(f"layers[{one}].attention.scores", f"layers[{other}].attention.scores", projected=False)
                for one, other in layers
            ],
        }
        return {part: pairs for part, pairs in every.items() if part in self.options.parts}
