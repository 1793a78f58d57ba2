"""Distillation of logits (Hinton et al. 2015): the student learns the teacher's distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from cook.distill.chunked import mean_square, soft_cross_entropy
from cook.passes import WINDOW, Effect, Pass, Term, register

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy
    from cook.session import Session


LOSSES = {"ce": soft_cross_entropy, "mse": mean_square}


def valid_rows(logits: Tensor, labels: Tensor | None, *, causal: bool = False) -> Tensor:
    """Logits as [rows, classes]: a row an example, or a row a token whose label is not ignored (-100).

    Args:
        logits: [batch, classes] or [batch, tokens, classes].
        labels: [batch] or [batch, tokens]; without them every token counts.
        causal: the logits of a token are about the next token's label.
    """
    if logits.dim() == 2:
        return logits
    if labels is None:
        return logits.flatten(0, -2)
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits[labels != -100]


def labelled(
    logits: Tensor, labels: Tensor | None, tokens: Tensor | None = None, *, causal: bool = False
) -> Tensor | None:
    """The rows of logits that count: the `rows` of the chunked losses, before any row is copied.

    Args:
        logits: [batch, classes] or [batch, tokens, classes].
        labels: [batch, tokens]; a token whose label is -100 does not count. Without labels, the tokens
            themselves are what is learnt about.
        tokens: bool [batch, tokens], the tokens that are no padding. Leave it out where the logits are about
            other tokens than the input's, as a decoder's after an encoder.
        causal: the logits of a token are about the next one: those of the last token count never, and those
            of a padding before the first token do not.

    Returns:
        Bool [batch, tokens]; None when every row counts, as in [batch, classes].

    Raises:
        ValueError: when labels or tokens are no [batch, tokens].
    """
    if logits.dim() == 2:
        return None
    lead = logits.shape[:-1]
    if any(each is not None and each.shape != lead for each in (labels, tokens)) or len(lead) != 2:
        shapes = [tuple(each.shape) for each in (labels, tokens) if each is not None]
        raise ValueError(f"logits {tuple(logits.shape)} are not by token, or not those of {shapes}")
    about = torch.ones(lead, dtype=torch.bool, device=logits.device)
    if tokens is not None:
        about &= tokens
    if labels is not None:
        about &= labels != -100
    if not causal:
        return about
    counts = torch.zeros_like(about)
    counts[:, :-1] = about[:, 1:]
    return counts if tokens is None else counts & tokens


@register
class DistillLogits(Pass):
    """Adds the distance between the student's and the teacher's logits to the loss."""

    name = "distill.logits"
    summary = "learn the teacher's output distribution (cross-entropy with temperature, or squared error)"
    phase = "observe"
    needs = frozenset({"training", "teacher"})
    options: ClassVar[dict[str, Any]] = {
        "loss": {
            "enum": sorted(LOSSES),
            "default": "ce",
            "description": "soft cross-entropy or squared error",
        },
        "temperature": {
            "type": "number",
            "exclusiveMinimum": 0,
            "default": 1.0,
            "description": "softens both distributions; the loss is scaled by its square (ce)",
        },
        "weight": {"type": "number", "minimum": 0, "default": 1.0, "description": "weight of this term"},
        "task_weight": {
            "type": "number",
            "minimum": 0,
            "default": 1.0,
            "description": "weight of the task's own loss while this pass acts",
        },
        **WINDOW,
    }
    examples = ({"temperature": 2}, {"loss": "mse", "weight": 0.5})

    def plan(self, anatomy: Anatomy) -> Effect:
        return Effect(note=f"{self.given['loss']}, temperature {self.given['temperature']:g}")

    def task_weight(self) -> float:
        return float(self.given["task_weight"])

    def settled(self, done: int) -> bool:
        """At any time: the model is no larger while it learns from a teacher."""
        return True

    def losses(self, session: Session) -> dict[str, Term]:
        labels = session.batch.get("labels")
        causal = type(session.model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
        student = valid_rows(session.outputs.logits, labels, causal=causal)
        teacher = valid_rows(session.teacher_outputs().logits, labels, causal=causal)
        if student.shape != teacher.shape:
            raise self.error(
                f"the student's logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}",
                hint="the teacher needs the student's labels, or its vocabulary",
            )
        distance = LOSSES[self.given["loss"]](student, teacher, self.given["temperature"])
        return {"logits": Term(distance, float(self.given["weight"]))}
