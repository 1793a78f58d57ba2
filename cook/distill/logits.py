"""Distillation of logits (Hinton et al. 2015): the student learns the teacher's distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.nn import functional

from cook.passes import WINDOW, Effect, Pass, Term, register

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy
    from cook.session import Session


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))`, the mean over rows.

    The factor T^2 keeps the size of the gradient when the temperature changes (Hinton et al. 2015,
    section 2.1). The teacher's entropy is subtracted, so a perfect student has loss 0.

    Args:
        student, teacher: logits [rows, classes].
        temperature: above 0.

    Returns:
        A scalar in float32.
    """
    target = functional.log_softmax(teacher.float() / temperature, dim=-1)
    guess = functional.log_softmax(student.float() / temperature, dim=-1)
    return functional.kl_div(guess, target, reduction="batchmean", log_target=True) * temperature**2


def mean_square(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean over rows and classes of `((student - teacher) / T)^2` for logits [rows, classes]."""
    return functional.mse_loss(student.float() / temperature, teacher.float() / temperature)


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
