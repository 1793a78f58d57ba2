"""Teacher models: run at most once per forward, for all passes, and never trained."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.tensors import Tensors
from cook.model.nn.hooks import Hooks
from cook.model.probe.batch import ROWS

One: TypeAlias = PreTrainedModel | Literal["self"]
Given: TypeAlias = One | Sequence["One | tuple[One, float] | Named"] | None
"""A teacher, or several, optionally with weights."""


class Teacher:
    """A model in eval mode and without gradients that provides logits and tensors for the current batch.

    It computes in the student's precision; one in half precision keeps that precision under autocast.

    Args:
        model: set to eval mode permanently.
        hooks: used to watch tensors and to remove those hooks.
        weight: relative to other teachers.
    """

    by_row: ClassVar[bool] = False
    """Whether batches must contain the indices of their rows."""

    def __init__(self, model: PreTrainedModel, hooks: Hooks, weight: float = 1.0):
        self.model: Any = model.eval().requires_grad_(False)
        self.weight = weight
        self.anatomy = Anatomy(model)
        self._tensors = Tensors(self.anatomy, hooks)
        self._batch: Mapping[str, Tensor] = {}
        self._outputs: Any = None
        kinds = getattr(model.config, "type_vocab_size", None)
        takes = inspect.signature(model.forward).parameters
        self._segments = "token_type_ids" in takes and kinds not in (0, 1)

    def watch(self, name: str) -> None:
        """Register a tensor to watch, before the first batch.

        Raises:
            CookError: the name is unknown in this model.
        """
        self._tensors.watch(name)

    def soften(self, temperature: float) -> None:
        """Request `top` at a temperature, before the first batch."""

    def top(self, temperature: float) -> tuple[Tensor, Tensor, Tensor] | None:
        """The result of `truncated.top`, if only that is available; None: use the logits."""
        return None

    def open(self) -> None:
        """Call this after all requests and before the first batch."""
        self._tensors.open()

    def set_batch(self, batch: Mapping[str, Tensor]) -> None:
        """Set the batch of the next forward; the model runs on demand."""
        self._tensors.clear()
        self._batch, self._outputs = batch, None

    def place(self, device: torch.device | str) -> None:
        """Move the teacher to the student's device."""
        self.model.to(device)

    @property
    def outputs(self) -> Any:
        """The model's outputs for the batch."""
        if self._outputs is None:
            # Autocast would mix a half-precision dtype with its own, which some kernels do not accept.
            half = self.model.dtype.itemsize < 4
            own = torch.autocast(self.model.device.type, enabled=False) if half else nullcontext()
            with torch.no_grad(), own, self._tensors.recording():
                self._outputs = self.model(**self._inputs())
        return self._outputs

    def _inputs(self) -> dict[str, Tensor]:
        unseen = {ROWS} if self.model.config.is_encoder_decoder else {ROWS, "labels"}
        if not self._segments:
            unseen.add("token_type_ids")
        return {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in self._batch.items()
            if name not in unseen
        }

    def tensor(self, name: str) -> Tensor:
        """A watched tensor for the current batch."""
        _ = self.outputs
        return self._tensors[name]

    def forget(self) -> None:
        """Drop the batch and its outputs."""
        self.set_batch({})

    @property
    def finite(self) -> bool:
        """Whether the last outputs are finite (-inf logits are allowed); True if there are none."""
        logits = getattr(self._outputs, "logits", None)
        return logits is None or bool((logits < torch.inf).all())

    def finite_for(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether the outputs for a batch are finite; True if the last forward did not use the teacher."""
        if self._outputs is None:
            return True
        self.set_batch(batch)
        return self.outputs is not None and self.finite


class Named(NamedTuple):
    """A specification of a teacher.

    Attributes:
        model: the model, or `"self"`.
        weight: relative to other teachers.
        kind: creates a Teacher from model, hooks and weight.
    """

    model: One
    weight: float = 1.0
    kind: Callable[..., Teacher] = Teacher


def named(given: Given) -> list[Named]:
    """All given teachers, in normalised form."""
    if given is None:
        return []
    several: list[Any] = given if isinstance(given, list) else [given]
    for each in several:
        if isinstance(each, tuple) and len(each) > 1 and not isinstance(each[1], (int, float)):
            message = f"a teacher's weight must be a number above 0, found a {type(each[1]).__name__}"
            raise CookError(message, where="teacher", hint="several teachers go into a list")
    return [Named(*each) if isinstance(each, tuple) else Named(each) for each in several]


def not_finite(several: Sequence[Teacher], batches: Sequence[Mapping[str, Tensor]]) -> str | None:
    """Describe the teacher whose outputs for one of the batches are not finite; None if all are finite."""
    for index, teacher in enumerate(several):
        if not all(teacher.finite_for(batch) for batch in batches):
            return f"teacher {index} (counted from 0)" if len(several) > 1 else "the teacher"
    return None


def teachers(
    model: PreTrainedModel, given: Given, hooks: Hooks, source: PreTrainedModel | None = None
) -> list[Teacher]:
    """Create the teachers of a student.

    Args:
        model: the student, before any pass.
        given: a model, `"self"`, several of them, or None.
        source: the model for `"self"`; None means a copy of the student.

    Raises:
        CookError: another value is given, or a weight is not a positive, finite number.
    """
    found = []
    for each in named(given):
        if not (isinstance(each.weight, (int, float)) and 0 < each.weight < math.inf):
            message = f"a teacher's weight must be a number above 0, found {each.weight!r}"
            raise CookError(message, where="teacher")
        found.append(each.kind(_resolved(model, each.model, source), hooks, float(each.weight)))
    return found


def _resolved(model: PreTrainedModel, teacher: Any, source: PreTrainedModel | None) -> PreTrainedModel:
    """A teacher's model, set up to read batches padded for the student."""
    if isinstance(teacher, str) and teacher == "self":
        teacher = model if source is None else source
    # A model given as its own teacher is copied in its present state, too.
    made = copy.deepcopy(model) if teacher is model else teacher
    if not isinstance(made, PreTrainedModel):
        hint = "load the teacher and give the model itself, or 'self' for a copy of the student"
        what = repr(teacher) if isinstance(teacher, str) else f"a {type(teacher).__name__}"
        raise CookError(f"found {what} for a teacher, expected a model or 'self'", hint=hint)
    teacher_labels, student_labels = (
        folded(getattr(each.config, "label2id", None)) for each in (made, model)
    )
    if teacher_labels.keys() == student_labels.keys() and teacher_labels != student_labels:
        # Other names may be synonyms; the same names in another order are an error.
        message = f"the teacher's labels are {teacher_labels}, the student's are {student_labels}"
        raise CookError(message, where="teacher", hint="both need the same labels in the same order")
    read_alike(made, model)
    return made


def folded(label2id: Mapping[str, Any] | None) -> dict[str, int]:
    """Labels by name, without case and surrounding blanks, as labels of data are matched; unchanged if two
    would coincide."""
    given = {str(name): int(number) for name, number in (label2id or {}).items()}
    found = {name.strip().casefold(): number for name, number in given.items()}
    return found if len(found) == len(given) else given


def read_alike(model: PreTrainedModel, student: PreTrainedModel) -> None:
    """Configure a model to read batches that are padded for the student."""
    if (padding := getattr(student.config, "pad_token_id", None)) is not None:
        # Classifying decoders use the last token that is not their config's padding token.
        model.config.pad_token_id = padding
