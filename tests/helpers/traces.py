"""What a run leaves behind: hooks on modules, and states that should be the same to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def hooks(model: nn.Module) -> dict[str, int]:
    """How many hooks of each kind every module has, and whose `forward` was rebound."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        for kind, count in hooks_of(module).items():
            found[f"{name}.{kind}"] = count
        if "forward" in vars(module):
            found[f"{name}.forward"] = 1
    return found


def hooks_of(owner: object) -> dict[str, int]:
    """How many hooks of each kind one module or optimizer has."""
    registries = {key: value for key, value in vars(owner).items() if "hook" in key}
    return {key: len(value) for key, value in registries.items() if isinstance(value, Mapping) and value}


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Where two nested states are not the same to the bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield path
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            if key in one and key in other:
                yield from differences(one[key], other[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif one != other:
        yield f"{path}: {one} and {other}"
