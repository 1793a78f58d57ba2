"""States of a run that can be checked number by number, for the tests of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def state(step: int, size: int = 300) -> dict[str, Any]:
    """A state that can be told from `step` alone, so that a reader can check every number of it."""
    weight = torch.randn(size, generator=torch.Generator().manual_seed(step))
    return {
        "model": {"a.weight": weight, "a.bias": weight[:3].to(torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "groups": [{"lr": 0.1, "p": [0]}]},
        "run": {"step": step, "best": None, "done": False, "betas": (0.9, 0.999), "name": "x"},
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
