"""MiniLM: how the tokens of one layer relate to each other (Wang et al. 2020, and 2021 for version 2).

Relations are tokens by tokens, so student and teacher may differ in width; those of version 2 are split
into relation heads anew, so they may differ in heads too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from cook.distill.pairs import Intermediate, Pair, Shape, token_mean
from cook.distill.specs import MiniLMSpec
from cook.model.arch.tensors import scores
from cook.passes import Term, register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy


def regrouped(tensor: Tensor, heads: int) -> Tensor:
    """All heads side by side, split into so many anew.

    Args:
        tensor: [batch, heads before, tokens, head width].
        heads: a divisor of heads before * head width.

    Returns:
        [batch, heads, tokens, relation width].
    """
    joined = tensor.transpose(1, 2).flatten(2)
    return joined.unflatten(-1, (heads, -1)).transpose(1, 2)


def relation(tensor: Tensor) -> Tensor:
    """The products of all tokens with each other, divided by the root of the width, before the softmax.

    Args:
        tensor: [batch, heads, tokens, width].

    Returns:
        [batch, heads, tokens, tokens].
    """
    return scores(tensor, tensor, tensor.shape[-1] ** -0.5)


def relation_divergence(student: Tensor, teacher: Tensor, attended: Tensor) -> Tensor:
    """`KL(softmax(teacher) || softmax(student))` of tokens over tokens (2020, equations 5 and 7).

    Args:
        student, teacher: [batch, heads, tokens, tokens], before the softmax.
        attended: bool [batch, tokens, tokens]: what each token may attend to; nothing for padding.

    Returns:
        A scalar: the mean over examples of the mean over heads and an example's valid tokens.
    """
    # The least number and not infinity: rows of padding have nothing to attend to.
    lowest = torch.finfo(student.dtype).min
    hidden = torch.zeros_like(student[:, :1]).masked_fill_(~attended[:, None], lowest)
    target, guess = (teacher + hidden).log_softmax(-1), (student + hidden).log_softmax(-1)
    divergence = functional.kl_div(guess, target, reduction="none", log_target=True).sum(-1)
    return token_mean(divergence.mean(1), attended.any(-1))


@register
class DistillMiniLM(MiniLMSpec, Intermediate):
    """Adds the divergence of relations between tokens, in one layer each, to the loss."""

    def pairs(self, student: Anatomy, teacher: Anatomy) -> list[Pair]:
        parts = ("scores", "values") if self.options.version == 1 else self.options.relations
        found = []
        for who, anatomy in (("student", student), ("teacher", teacher)):
            layer, count = getattr(self.options, f"{who}_layer"), len(anatomy.layers)
            if not -count <= layer < count:
                raise self.error(
                    f"there is no layer {layer}: the {who} has {count}, 0 to {count - 1}",
                    option=f"{who}_layer",
                )
            found.append([f"layers[{layer % count}].attention.{part}" for part in parts])
        return [Pair(one, other) for one, other in zip(*found, strict=True)]

    def comparable(self, pair: Pair, student: Sequence[int], teacher: Sequence[int]) -> bool:
        if self.options.version == 1:
            return student[1:3] == teacher[1:3]
        return student[2] == teacher[2]

    def unequal(self, student: Sequence[int], teacher: Sequence[int]) -> str | None:
        if student[2] == teacher[2]:
            return "version 1 compares head by head; version: 2 splits any heads anew"
        return "both models must see an example as the same number of tokens"

    def sizes(self, anatomy: Anatomy, pairs: Sequence[Pair]) -> dict[Pair, tuple[Shape, Shape]]:
        sizes = super().sizes(anatomy, pairs)
        heads = self._heads(self._teacher_anatomy(anatomy))
        for pair, both in sizes.items() if self.options.version == 2 else ():
            for who, (_, before, _, width) in zip(("student", "teacher"), both, strict=True):
                if before * width % heads:
                    raise self.error(
                        f"the {who}'s {getattr(pair, who)} has {before * width} numbers a token, "
                        f"which {heads} relation heads cannot share",
                        option="heads",
                        hint="choose a divisor of both models' widths",
                    )
        return sizes

    def losses(self, context: Context) -> dict[str, Term]:
        terms = {}
        for pair in self.watched:
            student, teacher = self.compared(context, pair)
            attended = self.attended(context, pair, student)
            part = pair.student.rpartition(".")[2]
            if self.options.version == 2:
                heads = self._heads(self.teacher(context).anatomy)
                student, teacher = regrouped(student, heads), regrouped(teacher, heads)
            if part != "scores":
                student, teacher = relation(student), relation(teacher)
            name = "attention" if part == "scores" else part
            terms[name] = Term(relation_divergence(student, teacher, attended), float(self.options.weight))
        return terms

    def _heads(self, teacher: Anatomy) -> int:
        config: Any = teacher.model.config
        return int(self.options.heads or config.num_attention_heads)
