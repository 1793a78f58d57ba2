"""Distillation of logits (Hinton et al. 2015): the student learns the teacher's distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cook.distill.base import DistillationPass
from cook.distill.losses.chunked import mean_square, soft_cross_entropy
from cook.distill.losses.truncated import truncated_cross_entropy
from cook.distill.specs import LogitsSpec
from cook.model.arch.shapes import output_shapes
from cook.model.probe.alignment import beside, predicts_next
from cook.passes import Effect, Term, register

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy
    from cook.teacher.teacher import Teacher


LOSSES = {"ce": soft_cross_entropy, "mse": mean_square}


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
class DistillLogits(LogitsSpec, DistillationPass):
    """Adds the distance between the student's and the teacher's logits to the loss."""

    def plan(self, anatomy: Anatomy) -> Effect:
        model: Any = anatomy.model
        kind, config = type(model).__name__, model.config
        if kind.endswith("ForQuestionAnswering"):
            hint = "distill.hidden learns tensors inside of it"
            raise self.error(f"a {kind} gives starts and ends, no logits of one distribution", hint=hint)
        for one, role in ((anatomy, "model"), *((each, "teacher") for each in anatomy.teachers)):
            self._check_outputs(one.model, role)
        alone = kind.endswith("ForSequenceClassification") and config.num_labels == 1
        self._check_problem("regression" if alone else getattr(config, "problem_type", None))
        return Effect(note=f"{self.options.loss}, temperature {self.options.temperature:g}")

    def attach(self, context: Context) -> None:
        super().attach(context)
        for teacher in context.teachers:
            if self.options.loss == "ce":
                teacher.soften(self.options.temperature)
            else:
                teacher.watch("logits")

    def _check_problem(self, problem: str | None) -> None:
        if self.options.loss == "ce" and problem in ("regression", "multi_label_classification"):
            message = f"outputs of a model for {problem.replace('_', ' ')} are no distribution"
            raise self.error(message, option="loss", hint="loss: mse")

    def _check_outputs(self, model: Any, role: str) -> None:
        """Refuse heads whose outputs are not one distribution for each example or each token."""
        known, kind = output_shapes(model), type(model).__name__
        if known is None:
            return  # it takes data to tell; the first batch does
        given, read = known
        hint = "distill.hidden learns tensors inside of the model"
        if "logits" not in given:
            raise self.error(f"the {role}, a {kind}, gives {', '.join(given)} and no `logits`", hint=hint)
        shape = given["logits"]
        if len(shape) > 3 or (len(shape) == 3 and shape[:2] != read[:2]):
            message = f"the logits of the {role}, a {kind}, are neither by example nor by token"
            raise self.error(message, hint=hint)

    def losses(self, context: Context) -> dict[str, Term]:
        # transformers decides what a classifier is for when it sees the first labels.
        self._check_problem(getattr(context.model.config, "problem_type", None))
        student, labels = self._given(context.outputs), context.batch.get("labels")
        tokens = None if context.model.config.is_encoder_decoder else context.batch.get("attention_mask")
        try:
            causal = predicts_next(context.model, context.outputs, labels)
            if student.ndim == 3:
                labels = beside(labels, student) if labels is not None and labels.ndim == 2 else labels
                tokens = beside(tokens, student, 1) if tokens is not None and tokens.ndim == 2 else tokens
            rows = labelled(student, labels, None if tokens is None else tokens.bool(), causal=causal)
        except ValueError as error:
            raise self.error(str(error), hint="distill.hidden learns tensors inside of the model") from error
        distance = self._distance(context, student, rows)
        return {"logits": Term(distance, float(self.options.weight))}

    def _distance(self, context: Context, student: Tensor, rows: Tensor | None) -> Tensor:
        temperature = float(self.options.temperature)
        weights = [teacher.weight for teacher in context.teachers]
        tops = [teacher.top(temperature) for teacher in context.teachers]
        if self.options.loss == "mse" or not any(tops):
            whole = [self._logits(teacher, student) for teacher in context.teachers]
            return LOSSES[self.options.loss](student, whole, temperature, weights=weights, rows=rows)
        # The sum of the losses has the gradient of the loss of the mixture.
        total = student.new_zeros((), dtype=torch.float32)
        for teacher, top, weight in zip(context.teachers, tops, weights, strict=True):
            if top is None:
                loss = soft_cross_entropy(student, self._logits(teacher, student), temperature, rows=rows)
            else:
                loss = truncated_cross_entropy(student, *top, temperature, rows=rows)
            total = total + loss * (weight / sum(weights))
        return total

    def _given(self, outputs: Any) -> Tensor:
        found: Tensor | None = getattr(outputs, "logits", None)
        if found is None:
            hint = "distill.hidden learns tensors inside of the model"
            raise self.error(f"a {type(outputs).__name__} has no `logits`", hint=hint)
        return found

    def _logits(self, teacher: Teacher, student: Tensor) -> Tensor:
        found = self._given(teacher.outputs)
        if found.shape != student.shape:
            raise self.error(
                f"the student's logits are {tuple(student.shape)}, the teacher's {tuple(found.shape)}",
                hint="the teacher needs the student's labels, or its vocabulary",
            )
        return found
