"""What goes wrong in training, told to people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cook.errors import Interrupted, RunError
from cook.sections import TrainSection


def not_finite(term: str, value: float, step: int, total: int, teacher: str | None = None) -> RunError:
    """A loss term, or the gradient's norm, is NaN or infinite.

    Args:
        teacher: the one, in words, whose answers are not finite either.
    """
    what = "the gradient's norm" if term == "gradient norm" else f"the loss term {term!r}"
    kind = "NaN" if math.isnan(value) else "infinite"
    because = f": {teacher} gives numbers that are not finite" if teacher else ""
    return RunError(
        f"{what} is {kind} at step {step} of {total}{because}; the run stopped before the step was made, "
        "nothing is saved over",
        hint="look at the teacher's weights, or let it compute in more: teacher.dtype: float32"
        if teacher
        else "lower train.learning_rate, or use train.precision: fp32 or bf16; "
        "a checkpoint before it is kept",
    )


def interrupted(done: int, total: int, *, kept: bool) -> Interrupted:
    """A signal stopped the run; `kept` says whether a checkpoint was written."""
    message = f"stopped after step {done} of {total}"
    if not kept:
        return Interrupted(f"{message}; nothing is kept")
    return Interrupted(
        f"{message}; a checkpoint is written", hint="run again with --resume to go on from there"
    )


@contextmanager
def memory_errors(train: TrainSection) -> Iterator[None]:
    """Turn running out of memory into a RunError that says which accumulation to try.

    Args:
        train: the recipe's section: `batch_size` and `accumulate`.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        micro = -(-train.batch_size // train.accumulate)
        if micro == 1:
            hint = (
                "a micro-batch is one example already: shorten data.max_length, or use gradient_checkpointing"
            )
        else:
            hint = (
                f"set train.accumulate: {train.accumulate * 2}: the same batch_size {train.batch_size} in "
                f"micro-batches of {-(-micro // 2)}, with the same result"
            )
        raise RunError(f"out of memory with micro-batches of {micro} examples", hint=hint) from error


@contextmanager
def evaluation_memory_errors(batch_size: int) -> Iterator[None]:
    """Turn running out of memory in an evaluation into a RunError that says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        message = f"out of memory while evaluating {batch_size} examples at a time"
        hint = "lower eval.batch_size: it changes how long evaluation takes, not its result"
        raise RunError(message, hint=hint) from error


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    # The last is oneDNN's word for a scratch space that it could not have.
    known = "can't allocate memory" in text or "out of memory" in text
    return known or text == "could not create a primitive"
