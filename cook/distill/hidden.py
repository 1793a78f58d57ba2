"""Any tensor of the student learns from any tensor of the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from cook.distill.pairs import COMMON, PROJECTION, Intermediate, Pair, token_mean
from cook.passes import Term, register

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy
    from cook.session import Session


def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of the squared differences over the last dimension."""
    return (student - teacher).square().mean(-1)


def mean_absolute(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of the absolute differences over the last dimension."""
    return (student - teacher).abs().mean(-1)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 minus the cosine of the angle between vectors along the last dimension."""
    return 1 - functional.cosine_similarity(student, teacher, dim=-1)


DISTANCES = {"mse": mean_square, "l1": mean_absolute, "cosine": cosine}


def valid_mean(distances: Tensor, valid: Tensor) -> Tensor:
    """The mean over examples of what their valid tokens give.

    Args:
        distances: [batch], [batch, tokens], [batch, heads, tokens], or of another shape, whose mean is taken.
        valid: bool [batch, tokens].
    """
    if distances.dim() == 3 and distances.shape[::2] == valid.shape:
        return token_mean(distances.mean(1), valid)
    if distances.shape == valid.shape:
        return token_mean(distances, valid)
    return distances.mean()


@register
class DistillHidden(Intermediate):
    """Adds the distance of tensors, pair by pair, to the loss, as a mean over pairs."""

    name = "distill.hidden"
    summary = "learn any tensor inside of the teacher, by module path or by anatomy word"
    options: ClassVar[dict[str, Any]] = {
        "map": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "minProperties": 1,
            "description": "{student tensor: teacher tensor}: layers[3].output, embeddings.output, "
            "layers[0].attention.scores, logits, or a module's PATH[in] or PATH[out]",
        },
        "distance": {
            "enum": sorted(DISTANCES),
            "default": "mse",
            "description": "mean square, mean absolute difference, or 1 minus the cosine",
        },
        "normalize": {
            "type": "boolean",
            "default": False,
            "description": "scale vectors to length 1 before they are compared",
        },
        "projection": {**PROJECTION, "default": "none"},
        **COMMON,
    }
    required = ("map",)
    examples = (
        {"map": {"layers[0].output": "layers[1].output"}},
        {
            "map": {"embeddings.output": "embeddings.output", "layers[-1].output": "layers[-1].output"},
            "distance": "cosine",
            "projection": "each",
            "end": "50%",
        },
        {"map": {"layers[1].attention.values": "layers[0].attention.values"}, "normalize": True},
    )

    def pairs(self, student: Anatomy, teacher: Anatomy) -> list[Pair]:
        return [Pair(mine, theirs) for mine, theirs in self.given["map"].items()]

    def losses(self, session: Session) -> dict[str, Term]:
        values = []
        for pair in self.watched:
            mine, theirs = self.compared(session, pair)
            if pair.student.endswith(".scores"):
                attended = session.attended(mine[:, 0])[:, None]
                mine, theirs = mine.masked_fill(~attended, 0.0), theirs.masked_fill(~attended, 0.0)
            if self.given["normalize"]:
                mine, theirs = functional.normalize(mine, dim=-1), functional.normalize(theirs, dim=-1)
            distances = DISTANCES[self.given["distance"]](mine, theirs)
            values.append(valid_mean(distances, session.valid_tokens(mine)))
        return {"hidden": Term(torch.stack(values).mean(), float(self.given["weight"]))}
