"""One interface to every kind of linear layer.

`nn.Linear` stores its weight as [out, in], GPT-2's `Conv1D` as [in, out], and cook's replacements have
scales or packed integers. Passes use these functions and do not check classes.

A subclass of `nn.Linear` counts as linear if its forward computes the same as `nn.Linear` (Falcon's does).
Routers that return scores and indices, and layers that normalise their weights, do not count.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_proved: dict[tuple[Any, ...], bool] = {}
"""For subclasses of nn.Linear that override forward: whether they compute the same as nn.Linear."""


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, recognised by name: it may not be importable yet."""
    return any(
        cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"
        for cls in type(module).__mro__
    )


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an nn.Linear, a Conv1D, or a linear layer of cook (class attribute `cook_linear`).

    A subclass of nn.Linear that overrides forward has to compute the same.
    """
    if type(module) is nn.Linear or getattr(module, "cook_linear", False) or is_conv1d(module):
        return True
    if not isinstance(module, nn.Linear):
        return False
    return type(module).forward is nn.Linear.forward or _computes_linear(module)


def _computes_linear(module: nn.Linear) -> bool:
    """Compare a subclass's forward with that of nn.Linear on random weights and inputs."""
    own = {name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
    own.pop("training", None)
    key = (type(module), module.bias is not None, *sorted(own.items()))
    if key not in _proved:
        generator = torch.Generator().manual_seed(0)
        replica = copy.copy(module)  # a module's __dict__ is copied, so its parameters can be others
        replica._parameters = {
            name: None if each is None else nn.Parameter(torch.randn(each.shape, generator=generator))
            for name, each in module._parameters.items()
        }
        inputs = torch.randn(2, 3, module.in_features, generator=generator)
        expected = functional.linear(inputs, replica.weight, replica.bias)
        try:
            with torch.no_grad():
                found = type(module).forward(replica, inputs)
            same = isinstance(found, Tensor) and torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
        except Exception:  # any error: the forward is not that of nn.Linear
            same = False
        _proved[key] = same
    return _proved[key]


def is_composite(module: nn.Module) -> bool:
    """Whether a module replaces a linear layer and consists of several (`cook.model.nn.composite`)."""
    return bool(getattr(module, "cook_composite", False))


def linears(module: nn.Module) -> list[str]:
    """The names of all linear layers in a module; a composite counts as one."""
    found: list[str] = []
    inner: tuple[str, ...] = ()
    for name, each in module.named_modules():
        if name.startswith(inner) and inner:
            continue
        if is_composite(each):
            inner = (*inner, f"{name}.")
        if is_composite(each) or is_linear(each):
            found.append(name)
    return found


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored as [in, out]: Conv1D, or a cook layer with attribute `transposed`."""
    return is_conv1d(module) or bool(getattr(module, "transposed", False))


def stands_for(module: nn.Module) -> str:
    """The class of a module in the original model: for a linear layer of cook, the class it replaced."""
    if not getattr(module, "cook_linear", False):
        return type(module).__name__
    return "Conv1D" if is_transposed(module) or getattr(module, "conv1d", False) else "Linear"


def shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, including composites.

    Raises:
        TypeError: `module` is not a linear layer.
    """
    if is_composite(module):
        return _sizes(module)
    if not is_linear(module):
        raise TypeError(f"{type(module).__name__} is not a linear layer")
    if getattr(module, "packed", False):
        return _sizes(module)
    rows, columns = _weight(module).shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def weight_count(module: nn.Module) -> int:
    """The number of weights of a linear layer or an embedding, independent of packing."""
    rows, columns = shape(module) if is_linear(module) else _weight(module).shape
    return rows * columns


def matrix(module: nn.Module) -> Tensor:
    """The weight as [out, in]: a view of the parameter, or the dequantised integers of an IntLinear.

    Raises:
        TypeError: `module` is not a linear layer.
    """
    if not is_linear(module):
        raise TypeError(f"{type(module).__name__} is not a linear layer")
    if getattr(module, "packed", False):
        return _dequantised(module)
    return _weight(module).t() if is_transposed(module) else _weight(module)


def _weight(module: Any) -> Tensor:
    weight = module.weight
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        raise TypeError(f"the weight of {type(module).__name__} is not a matrix")
    return weight


def _sizes(module: Any) -> tuple[int, int]:
    return module.out_features, module.in_features


def _dequantised(module: Any) -> Tensor:
    return module.dequantise()
