"""Gradient checkpointing: recomputes forwards in the backward to save memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from cook.errors import CookError


@contextmanager
def recomputing(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Enable gradient checkpointing of `model` in the context, if `wanted`, and restore it afterwards.

    Raises:
        CookError: the model does not support it.
    """
    if not wanted:
        yield
        return
    if not model.supports_gradient_checkpointing:
        message = f"{type(model).__name__} cannot compute its layers again in the backward"
        raise CookError(message, where="train.gradient_checkpointing", hint="leave it out")
    # The reentrant variant would lose gradients of tensors that passes capture inside a layer.
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
