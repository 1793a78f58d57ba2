"""The training loop: optimizer, schedules, evaluation, checkpoints."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType

_MOVED = {
    "data": "cook.data.rows.sources",
    "files": "cook.data.files.tables",
    "tasks": "cook.data.tasks",
}


def __getattr__(name: str) -> ModuleType:
    """A module that was here in version 0.1.0, from its new place."""
    if name not in _MOVED:
        raise AttributeError(f"module 'cook.train' has no attribute {name!r}")
    message = f"cook.train.{name} is {_MOVED[name]} now; the old name will go"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return import_module(_MOVED[name])
