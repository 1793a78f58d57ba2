"""Whom a student learns from: a model that runs once a forward, whoever asks, and never trains."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cook.errors import CookError
from cook.model.anatomy import Anatomy
from cook.model.hooks import Hooks
from cook.model.tensors import Tensors

One: TypeAlias = PreTrainedModel | Literal["self"]
Given: TypeAlias = One | Sequence[One | tuple[One, float]] | None
"""A teacher, or several, each with its weight if they should not count alike."""


class Teacher:
    """A model in eval mode and without gradients, that tells logits and tensors of the present batch.

    Args:
        model: is changed to eval mode for good.
        hooks: register what is watched, and remove it.
        weight: its share beside other teachers.
    """

    def __init__(self, model: PreTrainedModel, hooks: Hooks, weight: float = 1.0):
        self.model: Any = model.eval().requires_grad_(False)
        self.weight = weight
        self.anatomy = Anatomy(model)
        self._tensors = Tensors(self.anatomy, hooks)
        self._batch: Mapping[str, Tensor] = {}
        self._outputs: Any = None

    def watch(self, name: str) -> None:
        """Ask for a tensor by name, before the first batch.

        Raises:
            CookError: the name means nothing in this model.
        """
        self._tensors.watch(name)

    def open(self) -> None:
        """All is asked for, batches may come."""
        self._tensors.open()

    def meet(self, batch: Mapping[str, Tensor]) -> None:
        """Take the batch of the next forward; the model runs when it is asked."""
        self._batch, self._outputs = batch, None

    def place(self, device: torch.device | str) -> None:
        """Move to the device of the student."""
        self.model.to(device)

    @property
    def outputs(self) -> Any:
        """What the model gives for the batch."""
        if self._outputs is None:
            labels = () if self.model.config.is_encoder_decoder else ("labels",)
            inputs = {name: value for name, value in self._batch.items() if name not in labels}
            with torch.no_grad(), self._tensors.recording():
                self._outputs = self.model(**inputs)
        return self._outputs

    def tensor(self, name: str) -> Tensor:
        """A watched tensor, for the batch."""
        _ = self.outputs
        return self._tensors[name]

    def forget(self) -> None:
        """Let go of the batch and what came of it."""
        self._tensors.clear()
        self.meet({})

    @property
    def finite(self) -> bool:
        """Whether what it last gave is; True when it gave nothing."""
        return self._outputs is None or bool(torch.isfinite(self._outputs.logits).all())


def teachers(model: PreTrainedModel, given: Given, hooks: Hooks) -> list[Teacher]:
    """The teachers of a student.

    Args:
        model: the student, as it is before any pass.
        given: a model, `"self"` for a copy of the student, several of them, or None.

    Raises:
        CookError: something else is given, or a weight that is not positive.
    """
    if given is None:
        return []
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    weighted = [each if isinstance(each, tuple) else (each, 1.0) for each in several]
    if any(weight <= 0 for _, weight in weighted):
        raise CookError("a teacher's weight must be above 0", where="teacher")
    return [Teacher(_resolved(model, one), hooks, float(weight)) for one, weight in weighted]


def _resolved(model: PreTrainedModel, teacher: Any) -> PreTrainedModel:
    """A teacher's model, reading what is padded for the student."""
    # A model that is given as its own teacher is meant as it is now, too.
    made = (
        copy.deepcopy(model)
        if teacher is model or (isinstance(teacher, str) and teacher == "self")
        else teacher
    )
    if not isinstance(made, PreTrainedModel):
        hint = "load the teacher and give the model itself, or 'self' for a copy of the student"
        raise CookError(f"found {teacher!r} for a teacher, expected a model or 'self'", hint=hint)
    if (padding := getattr(model.config, "pad_token_id", None)) is not None:
        # A decoder that classifies looks for the last token that is not its config's padding.
        made.config.pad_token_id = padding
    return made
