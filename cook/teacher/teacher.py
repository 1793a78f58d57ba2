"""Whom a student learns from: a model that runs once a forward, whoever asks, and never trains."""

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
"""A teacher, or several, each with its weight if they should not count alike."""


class Teacher:
    """A model in eval mode and without gradients, that tells logits and tensors of the present batch.

    It computes as the student does; one in half precision computes in that, under autocast too.

    Args:
        model: is changed to eval mode for good.
        hooks: register what is watched, and remove it.
        weight: its share beside other teachers.
    """

    by_row: ClassVar[bool] = False
    """Whether batches must say which rows they hold."""

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
        """Ask for a tensor by name, before the first batch.

        Raises:
            CookError: the name means nothing in this model.
        """
        self._tensors.watch(name)

    def soften(self, temperature: float) -> None:
        """Ask for `top` at a temperature, before the first batch."""

    def top(self, temperature: float) -> tuple[Tensor, Tensor, Tensor] | None:
        """What `truncated.top` gives, if no more than that is known; None: use the logits."""
        return None

    def open(self) -> None:
        """All is asked for, batches may come."""
        self._tensors.open()

    def set_batch(self, batch: Mapping[str, Tensor]) -> None:
        """Take the batch of the next forward; the model runs when it is asked."""
        self._tensors.clear()
        self._batch, self._outputs = batch, None

    def place(self, device: torch.device | str) -> None:
        """Move to the device of the student."""
        self.model.to(device)

    @property
    def outputs(self) -> Any:
        """What the model gives for the batch."""
        if self._outputs is None:
            # Autocast would mix a half precision with its own, which not every kernel takes.
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
        """A watched tensor, for the batch."""
        _ = self.outputs
        return self._tensors[name]

    def forget(self) -> None:
        """Let go of the batch and what came of it."""
        self.set_batch({})

    @property
    def finite(self) -> bool:
        """Whether what it last gave is (a class may be ruled out); True when it gave nothing."""
        logits = getattr(self._outputs, "logits", None)
        return logits is None or bool((logits < torch.inf).all())

    def finite_for(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether what it gives for a batch is; True of one that was not asked in the last forward."""
        if self._outputs is None:
            return True
        self.set_batch(batch)
        return self.outputs is not None and self.finite


class Named(NamedTuple):
    """A teacher as it is asked for.

    Attributes:
        model: itself, or `"self"`.
        weight: its share beside other teachers.
        kind: makes a Teacher of the model, the hooks and the weight.
    """

    model: One
    weight: float = 1.0
    kind: Callable[..., Teacher] = Teacher


def named(given: Given) -> list[Named]:
    """All teachers that are given, in whatever form."""
    if given is None:
        return []
    several: list[Any] = given if isinstance(given, list) else [given]
    for each in several:
        if isinstance(each, tuple) and len(each) > 1 and not isinstance(each[1], (int, float)):
            message = f"a teacher's weight must be a number above 0, found a {type(each[1]).__name__}"
            raise CookError(message, where="teacher", hint="several teachers go into a list")
    return [Named(*each) if isinstance(each, tuple) else Named(each) for each in several]


def not_finite(several: Sequence[Teacher], batches: Sequence[Mapping[str, Tensor]]) -> str | None:
    """Who of the teachers, in words, gives what is not finite for one of the batches; None if nobody does."""
    for index, teacher in enumerate(several):
        if not all(teacher.finite_for(batch) for batch in batches):
            return f"teacher {index} (counted from 0)" if len(several) > 1 else "the teacher"
    return None


def teachers(
    model: PreTrainedModel, given: Given, hooks: Hooks, source: PreTrainedModel | None = None
) -> list[Teacher]:
    """The teachers of a student.

    Args:
        model: the student, as it is before any pass.
        given: a model, `"self"`, several of them, or None.
        source: what `"self"` is; None means a copy of the student.

    Raises:
        CookError: something else is given, or a weight that is no positive, finite number.
    """
    found = []
    for each in named(given):
        if not (isinstance(each.weight, (int, float)) and 0 < each.weight < math.inf):
            message = f"a teacher's weight must be a number above 0, found {each.weight!r}"
            raise CookError(message, where="teacher")
        found.append(each.kind(_resolved(model, each.model, source), hooks, float(each.weight)))
    return found


def _resolved(model: PreTrainedModel, teacher: Any, source: PreTrainedModel | None) -> PreTrainedModel:
    """A teacher's model, reading what is padded for the student."""
    if isinstance(teacher, str) and teacher == "self":
        teacher = model if source is None else source
    # A model that is given as its own teacher is meant as it is now, too.
    made = copy.deepcopy(model) if teacher is model else teacher
    if not isinstance(made, PreTrainedModel):
        hint = "load the teacher and give the model itself, or 'self' for a copy of the student"
        what = repr(teacher) if isinstance(teacher, str) else f"a {type(teacher).__name__}"
        raise CookError(f"found {what} for a teacher, expected a model or 'self'", hint=hint)
    theirs, ours = (folded(getattr(each.config, "label2id", None)) for each in (made, model))
    if theirs.keys() == ours.keys() and theirs != ours:
        # Other names may mean the same; the same names in another order never do.
        message = f"the teacher's labels are {theirs}, the student's are {ours}"
        raise CookError(message, where="teacher", hint="both need the same labels in the same order")
    read_alike(made, model)
    return made


def folded(label2id: Mapping[str, Any] | None) -> dict[str, int]:
    """Labels by their names without case and surrounding blanks, as the labels of data are matched; as they
    are where two would fall together."""
    given = {str(name): int(number) for name, number in (label2id or {}).items()}
    found = {name.strip().casefold(): number for name, number in given.items()}
    return found if len(found) == len(given) else given


def read_alike(model: PreTrainedModel, student: PreTrainedModel) -> None:
    """Let a model read batches that are padded for the student."""
    if (padding := getattr(student.config, "pad_token_id", None)) is not None:
        # A decoder that classifies looks for the last token that is not its config's padding.
        model.config.pad_token_id = padding
