"""The shapes of tensors inside of a model, determined without data or weights."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.tensors import Tensors
from cook.model.nn.hooks import Hooks
from cook.model.probe.example import FAILURES, Unmeasured, device_of, examples
from cook.model.probe.measure import evaluating


@torch.no_grad()
def shapes(anatomy: Anatomy, names: Iterable[str], tokens: int = 3) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors for one small example; also on the meta device.

    Args:
        names: of tensors.
        tokens: length of the example, if the model reads tokens.

    Raises:
        CookError: a name is unknown in this model, its module does not run (`Unmeasured` on the meta
            device), or the tensor holds integers.
    """
    model: Any = anatomy.model
    hooks = Hooks()
    tensors = Tensors(anatomy, hooks)
    for name in names:
        tensors.watch(name)
    tensors.open()
    found: dict[str, Tensor] = {}
    try:
        for example in examples(model, tokens):
            try:
                with evaluating(model), tensors.recording():
                    model(**example)
            except FAILURES as error:
                # A head can need values, which meta tensors lack; the shapes recorded before that are valid.
                if device_of(model).type != "meta":
                    last: Exception = error
                    continue
            try:
                found = {name: tensors[name] for name in names}
                break
            except CookError as error:
                unmeasured = Unmeasured(error.message, hint=error.hint)
                last = unmeasured if device_of(model).type == "meta" else error
        else:
            raise last
    finally:
        hooks.close()
    if whole := [name for name, tensor in found.items() if not tensor.is_floating_point()]:
        raise CookError(
            f"{whole[0]} holds whole numbers, as of tokens: nothing is learned from them",
            hint="name what comes out of the embeddings, or later",
        )
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


@torch.no_grad()
def output_shapes(model: Any) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]] | None:
    """The shapes of a model's outputs by name, and of its inputs, for one small example.

    Args:
        model: also on the meta device.

    Returns:
        None if the model runs on no small example.
    """
    with suppress(Unmeasured), evaluating(model):
        for example in examples(model):
            with suppress(*FAILURES):
                found = model(**example)
                given = {name: tuple(each.shape) for name, each in found.items() if isinstance(each, Tensor)}
                decoded = example.get("decoder_input_ids", example.get(model.main_input_name))
                return given, () if decoded is None else tuple(decoded.shape)
    return None
