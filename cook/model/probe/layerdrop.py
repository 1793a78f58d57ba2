"""The layerdrop of a model itself, switched off while passes read tensors of its layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def without_layerdrop(model: nn.Module) -> Iterator[None]:
    """Every `layerdrop` of a model is 0 inside, with a warning for each; afterwards each is what it was.

    In training its forwards would leave layers out at random, whose tensors are then missing.
    """
    rates: list[tuple[Any, float]] = []
    try:
        # Some models keep the rate in a module, others read it from the config in every forward.
        for prefix, module in model.named_modules():
            for name, holder in ((prefix, module), ("config", getattr(module, "config", None))):
                rate = getattr(holder, "layerdrop", None)
                if not isinstance(rate, float) or rate <= 0:
                    continue
                rates.append((holder, rate))
                warnings.warn(
                    f"{name}.layerdrop is {rate}; it is 0 while passes learn from tensors of layers,"
                    " which have to be there in every forward",
                    stacklevel=4,  # of the session, behind the context manager and its stack
                )
                setattr(holder, "layerdrop", 0.0)  # noqa: B010 - a module or a config
        yield
    finally:
        for holder, rate in reversed(rates):
            holder.layerdrop = rate
