"""Small example inputs that a model runs on before there is data, also without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from cook.errors import CookError

T = TypeVar("T")

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
"""Exceptions that a forward without values may raise."""

TOKENS = 128
"""Length of the example used to count multiply-accumulates in a plan, unless the data state another."""

SAMPLES = 4000
"""Length of an audio example: a quarter of a second."""


class Unmeasured(CookError):
    """The forward did not reach a tensor on the meta device; with weights it may."""


def examples(model: Any, tokens: int = 3) -> list[dict[str, Tensor]]:
    """Candidate inputs for a forward: models differ in the masks that they accept or require."""
    example = small_example(model, tokens)
    words = [name for name in example if name.endswith("input_ids")]
    if not words:
        return [example]
    bare = {name: example[name] for name in words}
    flat = {name.replace("input_ids", "attention_mask"): torch.ones_like(bare[name]) for name in words}
    return [example, *([bare] if len(example) > len(bare) else []), {**bare, **flat}]


def first_through(several: Iterable[dict[str, Tensor]], call: Callable[[dict[str, Tensor]], T]) -> T | None:
    """The result of `call` for the first example on which it does not fail; None if it fails on all."""
    for example in several:
        with suppress(*FAILURES):
            return call(example)
    return None


def device_of(model: Any) -> torch.device:
    """The device of a model's inputs: hooks move offloaded weights there."""
    offloaded = model.device.type == "meta" and "_hf_hook" in vars(model)
    return torch.device("cpu") if offloaded else model.device


def small_example(model: Any, tokens: int = 3) -> dict[str, Tensor]:
    """Inputs for one forward: an image or audio of zeros, or one token repeated.

    Args:
        model: its `main_input_name` determines the kind of input.
        tokens: length of the example, if the model reads tokens.

    Raises:
        Unmeasured: the model reads other inputs, or its config does not state the image size.
    """
    config, device = model.config, device_of(model)
    if model.main_input_name == "pixel_values":
        size, channels = _said(config, "image_size"), _said(config, "num_channels")
        if size is None:
            raise Unmeasured(f"the config of a {type(model).__name__} has no image_size")
        height, width = (size, size) if isinstance(size, int) else size
        image = torch.zeros(1, channels or 3, height, width, device=device, dtype=model.dtype)
        return {"pixel_values": image}
    if model.main_input_name == "input_values":
        return {"input_values": torch.zeros(1, SAMPLES, device=device, dtype=model.dtype)}
    if model.main_input_name == "input_features" and getattr(config, "num_mel_bins", None):
        frames = 2 * (getattr(config, "max_source_positions", None) or 50)
        sound = torch.zeros(1, config.num_mel_bins, frames, device=device, dtype=model.dtype)
        heard = {"input_features": sound}
        if config.is_encoder_decoder:
            heard["decoder_input_ids"] = torch.ones(1, tokens, dtype=torch.long, device=device)
        return heard
    if model.main_input_name != "input_ids":
        raise Unmeasured(f"a {type(model).__name__} reads {model.main_input_name}, of which cook makes none")
    parts = ("", "decoder_") if config.is_encoder_decoder else ("",)
    words = torch.ones(1, tokens, dtype=torch.long, device=device)
    if type(model).__name__.endswith("ForMultipleChoice"):
        words = words[:, None]
    example = {f"{part}input_ids": words for part in parts}
    if device.type == "meta":
        # Without a mask, or with one still to be created, some models inspect values.
        mask = torch.zeros(1, 1, tokens, tokens, device="meta", dtype=model.dtype)
        example.update({f"{part}attention_mask": mask for part in parts})
    return example


def random_examples(model: Any, tokens: int = 6, size: int = 2) -> list[dict[str, Tensor]]:
    """Candidate inputs of random values for a forward: two examples, always the same ones.

    On the meta device, those of `examples`.

    Raises:
        Unmeasured: as `small_example`.
    """
    if device_of(model).type == "meta":
        return examples(model, tokens)
    generator = torch.Generator().manual_seed(0)
    config = model.config
    several = examples(model, tokens)

    def drawn(name: str, value: Tensor) -> Tensor:
        shape = (size, *value.shape[1:])
        if value.is_floating_point():
            found = torch.randn(shape, generator=generator, dtype=torch.float32)
        elif name.endswith("input_ids"):
            found = torch.randint(_vocabulary(model), shape, generator=generator)
            padding, end = (getattr(config, key, None) for key in ("pad_token_id", "eos_token_id"))
            found[found == padding] += 1 if padding == 0 else -1
            if isinstance(end, int):
                found[:, -1] = end  # heads may search for the end-of-text token
        else:
            return value.expand(shape)
        return found.to(value)

    return [{name: drawn(name, value) for name, value in each.items()} for each in several]


def _vocabulary(model: Any) -> int:
    text = model.config.get_text_config()
    return int(getattr(text, "vocab_size", 0) or model.get_input_embeddings().num_embeddings)


def _said(config: Any, name: str) -> Any:
    """A value of a config, or of its vision part."""
    found = getattr(config, name, None)
    return getattr(getattr(config, "vision_config", None), name, None) if found is None else found


def planned_tokens(model: Any, most: int | None = None) -> int:
    """The length of an example in a plan: `most`, or `TOKENS`, limited to the model's positions."""
    limit = getattr(model.config, "max_position_embeddings", None) or TOKENS
    return max(1, min(most or TOKENS, limit - (2 if limit > TOKENS else 0)))
