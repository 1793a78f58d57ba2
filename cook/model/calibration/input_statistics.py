"""Accumulates statistics of linear layers' inputs, excluding padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.calibration.statistics import Statistic
from cook.model.nn.linear import shape

Kind = Callable[[int, torch.device], Any]
"""Creates an empty statistic for inputs of a given width."""


@dataclass
class InputStatistics:
    """Statistics by target; targets with the same input tensor share one.

    Attributes:
        kind: class of the shared statistics.
        own: classes of statistics that are not shared, by target.
        found: the statistics so far.
        added: the tensors of this forward, each with the statistic that it was added to.
    """

    kind: Kind
    own: Mapping[str, Kind] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    added: list[tuple[Tensor, Statistic]] = field(default_factory=list)

    def add(self, name: str, module: nn.Module, inputs: Tensor, valid: Tensor | None) -> None:
        """Add the inputs of a target.

        Args:
            inputs: [..., width].
            valid: which tokens are not padding, bool [batch, tokens]; None: all.

        Raises:
            CookError: the inputs do not have these tokens.
        """
        kind = self.own.get(name)
        shared = kind is None
        same = next((each for tensor, each in self.added if shared and tensor is inputs), None)
        if name not in self.found:
            made = (kind or self.kind)(shape(module)[1], inputs.device) if same is None else same
            self.found[name] = made
        statistic = self.found[name]
        if same is statistic:
            return
        if shared:
            self.added.append((inputs, statistic))
        flat = inputs.flatten(0, -2)
        if valid is not None and not _without_padding(inputs, valid):
            if len(flat) != valid.numel():
                raise CookError(
                    f"{name} gets {len(flat)} tokens where the layer has {valid.numel()}: which are padding?",
                    hint=f"exclude: [{name}]",
                )
            flat = flat[valid.flatten()]
        statistic.add(flat)


def _without_padding(inputs: Tensor, valid: Tensor) -> bool:
    """Whether the inputs are not tokens of a text: one state per example, as read by a head, or values that
    all examples share (relative positions)."""
    alone = inputs.ndim == 2 and len(inputs) == len(valid)
    return alone or (inputs.ndim == 3 and len(inputs) == 1 and inputs.shape[1] != valid.numel())


def valid_tokens(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Which tokens of a batch are not padding, bool [batch, tokens]; None: all.

    Raises:
        CookError: the mask marks more than padding.
    """
    return _told(batch, "attention_mask")


def output_tokens(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor | None:
    """`valid_tokens` for the outputs of a model: those of its decoder after an encoder, else of the text."""
    return answered_tokens(batch) if _decodes(model) else valid_tokens(batch)


def source_tokens(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[int, Tensor | None]:
    """The number of encoder tokens if it differs from the decoder's, and which are not padding.

    0 if all parts of a model have the same tokens, or the numbers are equal.
    """
    text, answer = batch.get("input_ids"), batch.get("decoder_input_ids", batch.get("labels"))
    if not _decodes(model) or text is None or answer is None or answer.numel() == text.numel():
        return 0, None
    return text.numel(), valid_tokens(batch)


def answered_tokens(batch: Mapping[str, Tensor]) -> Tensor | None:
    """`valid_tokens` for the inputs of a decoder after an encoder: from its mask, or tokens with a label.

    If neither is given (a classifier), the decoder reads the encoder's tokens.

    Raises:
        CookError: the mask marks more than padding.
    """
    if "decoder_attention_mask" in batch:
        return _told(batch, "decoder_attention_mask")
    labels = batch.get("labels")
    if labels is not None and labels.ndim == 2 and not labels.is_floating_point():
        return None if bool((labels != -100).all()) else labels != -100
    return None if "decoder_input_ids" in batch else valid_tokens(batch)


def _decodes(model: nn.Module) -> bool:
    """Whether the model is an encoder-decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _told(batch: Mapping[str, Tensor], name: str) -> Tensor | None:
    mask = batch.get(name)
    if mask is None or bool(mask.all()):
        return None
    if mask.ndim != 2:
        found = " x ".join(map(str, mask.shape))
        raise CookError(
            f"found {name} of {found}, expected [examples, tokens]",
            where="calibration",
            hint="padding is told by it",
        )
    return mask.bool()
