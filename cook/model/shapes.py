"""How large the tensors inside of a model are, told before there is data or even weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cook.errors import CookError
from cook.model.anatomy import Anatomy
from cook.model.hooks import Hooks
from cook.model.measure import evaluating
from cook.model.tensors import Tensors

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
"""What a forward without values may end with."""


class Unmeasured(CookError):
    """The forward did not come there on the meta device; with weights it may."""


@torch.no_grad()
def shapes(anatomy: Anatomy, names: Iterable[str], tokens: int = 3) -> dict[str, tuple[int, ...]]:
    """The shapes that tensors have for one small example; also on the meta device.

    Args:
        names: of tensors.
        tokens: of the example, where the model reads tokens.

    Raises:
        CookError: a name means nothing in this model, the forward never comes there (`Unmeasured` on the
            meta device), or comes with whole numbers.
    """
    model: Any = anatomy.model
    hooks = Hooks()
    tensors = Tensors(anatomy, hooks)
    for name in names:
        tensors.watch(name)
    tensors.open()
    found: dict[str, Tensor] = {}
    try:
        for example in _examples(model, tokens):
            try:
                with evaluating(model), tensors.recording():
                    model(**example)
            except FAILURES as error:
                # A head can ask for values, which meta tensors do not have; what was reached before counts.
                if _device(model).type != "meta":
                    last: Exception = error
                    continue
            try:
                found = {name: tensors[name] for name in names}
                break
            except CookError as error:
                told = Unmeasured(error.message, hint=error.hint)
                last = told if _device(model).type == "meta" else error
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


def _examples(model: Any, tokens: int) -> list[dict[str, Tensor]]:
    """What a forward may get through with: models differ in the masks that they take, or need."""
    example = small_example(model, tokens)
    words = [name for name in example if name.endswith("input_ids")]
    if not words:
        return [example]
    bare = {name: example[name] for name in words}
    flat = {name.replace("input_ids", "attention_mask"): torch.ones_like(bare[name]) for name in words}
    return [example, *([bare] if len(example) > len(bare) else []), {**bare, **flat}]


def _device(model: Any) -> torch.device:
    """Where a model takes its inputs: hooks bring weights that lie elsewhere."""
    offloaded = model.device.type == "meta" and "_hf_hook" in vars(model)
    return torch.device("cpu") if offloaded else model.device


def small_example(model: Any, tokens: int = 3) -> dict[str, Tensor]:
    """Inputs that a model takes without complaint: an image of zeros, or the same token so many times."""
    config = model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        image = torch.zeros(1, config.num_channels, height, width, device=_device(model), dtype=model.dtype)
        return {"pixel_values": image}
    parts = ("", "decoder_") if config.is_encoder_decoder else ("",)
    words = torch.ones(1, tokens, dtype=torch.long, device=_device(model))
    example = {f"{part}input_ids": words for part in parts}
    if _device(model).type == "meta":
        # Without a mask, or with one that is yet to be made, some models look at values.
        mask = torch.zeros(1, 1, tokens, tokens, device="meta", dtype=model.dtype)
        example.update({f"{part}attention_mask": mask for part in parts})
    return example
