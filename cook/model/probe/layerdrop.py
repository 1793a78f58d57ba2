"""Disables a model's own layerdrop while passes read tensors of its layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def without_layerdrop(model: nn.Module) -> Iterator[None]:
    """Set every `layerdrop` of a model to 0 in the context, with a warning for each, and restore it after.

    In training, forwards would otherwise skip layers at random, whose tensors are then missing.
    """
    rates: list[tuple[Any, float]] = []
    try:
        # Some models store the rate in a module, others read it from the config in every forward.
        for prefix, module in model.named_modules():
            for name, holder in ((prefix, module), ("config", getattr(module, "config", None))):
                rate = getattr(holder, "layerdrop", None)
                if not isinstance(rate, float) or rate <= 0:
                    continue
                rates.append((holder, rate))
                warnings.warn(
                    f"{name}.layerdrop is {rate}; it is 0 while passes learn from tensors of layers,"
                    " which have to be there in every forward",
                    stacklevel=4,  # the session's frame, above the context manager and its stack
                )
                setattr(holder, "layerdrop", 0.0)  # noqa: B010 - a module or a config
        yield
    finally:
        for holder, rate in reversed(rates):
            holder.layerdrop = rate
