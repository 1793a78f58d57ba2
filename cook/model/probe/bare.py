"""Copies of models without weights, for planning and inspection."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def bare(model: PreTrainedModel) -> PreTrainedModel | None:
    """A copy of a model on the meta device, without hooks.

    Returns:
        None if the model holds an object that cannot be copied.
    """
    copies: dict[int, Any] = {}
    for each in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(each, device="meta")
        learns = isinstance(each, nn.Parameter)
        copies[id(each)] = nn.Parameter(empty, requires_grad=each.requires_grad) if learns else empty
    for module in model.modules():
        for name, value in vars(module).items():
            if "_hooks" in name and isinstance(value, dict):
                copies[id(value)] = type(value)()
            elif isinstance(value, Tensor):
                copies.setdefault(id(value), torch.empty_like(value, device="meta"))
            elif name in ("_hf_hook", "_old_forward", "forward"):
                copies[id(value)] = value  # weights of an offloaded model are not copied
    try:
        found = copy.deepcopy(model, copies)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError):
        return None
    for module in found.modules():
        for name in ("_hf_hook", "_old_forward", "forward"):
            vars(module).pop(name, None)
    return found
