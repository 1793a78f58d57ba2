"""The load guard of a folder: one parameter is stored with an extra leading axis.

This makes a load without the Blueprint fail instead of misreading the folder. transformers then prints a
report of mismatched keys and raises an error that refers to it and that a folder cannot change. An empty
tensor whose name states the remedy is stored as well, so that the report shows it.
"""

from __future__ import annotations

import re
from collections import ChainMap
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.nn import surgery
from cook.model.nn.integer import IntLinear

NOTICE = "import_cook_before_loading_this_model"
"""The name of the empty tensor."""


def guard_parameter(model: Any) -> str:
    """The parameter used as the lock when the model is saved: preferably the weight of a norm.

    Raises:
        CookError: all stored parameters are shared.
    """
    base = getattr(model, "base_model", model)
    prefix = next((f"{name}." for name, module in model.named_modules() if module is base and name), "")
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    tied |= set((getattr(model, "all_tied_weights_keys", {}) or {}).values())
    seen: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    unsaved = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_save", None) or ()]
    choices = []
    for name, module in base.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}{name}.{key}"
            free = full not in tied and seen[id(parameter)] == 1 and not isinstance(module, IntLinear)
            saved = not any(each.search(full) for each in unsaved)
            if name and free and saved and parameter.ndim and parameter.is_floating_point():
                choices.append((parameter.ndim, "Norm" not in type(module).__name__, full))
    if not choices:
        raise CookError(
            f"every parameter of this {type(model).__name__} is shared: none is left to lock its folder with",
            hint="leave something unshared: another part, or smaller groups",
        )
    return min(choices, key=lambda choice: choice[:2])[2]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, parameter = name.rpartition(".")
    return surgery.get(model, module), parameter


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    new = nn.Parameter(value.detach(), requires_grad=getattr(module, name).requires_grad)
    new._is_hf_initialized = getattr(getattr(module, name), "_is_hf_initialized", False)  # type: ignore[attr-defined]
    setattr(module, name, new)


def widen(model: nn.Module, lock: str) -> None:
    """Add the extra axis to the parameter before its stored value is loaded."""
    module, name = _owner(model, lock)
    _set(module, name, getattr(module, name).unsqueeze(0))


def remove_guard(model: nn.Module, lock: str) -> None:
    """Remove the extra axis; for an offloaded model, from the weights its hook reads."""
    module, name = _owner(model, lock)
    value = getattr(module, name)
    if value.is_meta:
        hook, key = _offloaded(model, lock)
        hook.weights_map = ChainMap({key: hook.weights_map[key].squeeze(0)}, hook.weights_map)
    _set(module, name, value.squeeze(0))


def _offloaded(model: nn.Module, name: str) -> tuple[Any, str]:
    """The accelerate hook that holds an offloaded parameter, and the parameter's key there."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        hook = getattr(model.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        if hook is not None and getattr(hook, "weights_map", None) is not None:
            return hook, ".".join(parts[depth:])
    raise CookError(f"the weights of {name} are on no device", where="blueprint")


def guarded_state(model: nn.Module, lock: str) -> dict[str, Tensor]:
    """The state dict of a model as it is written, with the extra axis."""
    state = model.state_dict()
    value = state[lock]
    if value.is_meta:
        weights, name = _offloaded(model, lock)
        value = weights.weights_map[name]
    state[lock] = value.unsqueeze(0)
    state[NOTICE] = torch.empty(0)
    return state
