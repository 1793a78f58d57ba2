"""The head of a model, its modules outside of the base model, and its replacement by a new one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cook.model.edits.blueprint import Blueprint
from cook.model.hub.source import Refuse


def parts(model: Any) -> list[str]:
    """The names of the head's modules that have parameters; none if the model is a base model."""
    if model.base_model is model:
        return []
    base = model.base_model_prefix
    return [name for name, child in model.named_children() if name != base and list(child.parameters())]


def holds(model: Any, key: str) -> bool:
    """Whether a parameter belongs to the head."""
    return key.partition(".")[0] in parts(model)


def check(model: Any, blueprint: Blueprint, error: Refuse) -> None:
    """Refuse to replace a head that does not exist or that an edit has changed.

    Args:
        model: as it was saved.
        blueprint: the edits made to it by cook.

    Raises:
        CookError: the head cannot be replaced; at the key `head`.
    """
    if not parts(model):
        raise error("head", f"a {type(model).__name__} has no head apart from its layers", "leave it out")
    named = (name for edit in blueprint.edits for name in edit.modules)
    if changed := next((name for name in named if holds(model, name)), None):
        hint = "start from the model as it was before"
        raise error("head", f"{changed} was compressed and cannot be replaced", hint)


@torch.no_grad()
def renew(model: Any) -> list[str]:
    """Reinitialise the head randomly, as its family does.

    Returns:
        The names of its modules.
    """
    names = parts(model)
    for name in names:
        head: nn.Module = model.get_submodule(name)
        for module in head.modules():
            for key, parameter in module.named_parameters(recurse=False):
                # A new object: transformers skips those that it marked as loaded.
                setattr(module, key, nn.Parameter(parameter.clone()))
        head.apply(model._init_weights)
    return names
