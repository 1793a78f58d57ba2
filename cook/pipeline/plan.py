"""What a recipe would do, told before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cook.errors import CookError
from cook.model.anatomy import Anatomy
from cook.model.blueprint import Blueprint
from cook.model.measure import tally
from cook.passes import Effect, Pass
from cook.pipeline.inputs import load_model, make_passes, read_data
from cook.recipe import Recipe


@dataclass
class Plan:
    """Sizes before and after, and a row a pass.

    Attributes:
        before, after: `parameters`, `bytes`, `macs` (None: they are counted in the run, on real data).
        rows: `id`, `modules`, `parameters`, `zeros`, `parameters_after`, `bytes_after`, `window`, `note`.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    rows: list[dict[str, Any]]


def plan(recipe: Recipe) -> Plan:
    """Plan every pass on a model without weights, each on what the ones before it leave.

    Raises:
        CookError: a target matches nothing, or passes conflict.
    """
    data = read_data(recipe, _silent) if recipe.data is not None else None
    model = load_model(recipe, data, _silent, meta=True)
    dtype = getattr(torch, recipe.output.dtype) if recipe.output and recipe.output.dtype else None
    passes = make_passes(recipe)
    before = _sizes(model, dtype)
    rows = []
    for each, effect in plan_passes(model, passes):
        after = _sizes(model, dtype)
        rows.append(
            {
                "id": each.id,
                "modules": len({name.rpartition(".")[0] for name in effect.parameters}),
                "parameters": _count(model, effect),
                "zeros": effect.zeros,
                "parameters_after": after["parameters"],
                "bytes_after": after["bytes"],
                "window": [str(each.given[key]) for key in ("start", "end") if key in each.given],
                "note": effect.note,
            }
        )
    return Plan(before, _sizes(model, dtype), rows)


def plan_passes(model: nn.Module, passes: Sequence[Pass]) -> list[tuple[Pass, Effect]]:
    """Plan each pass on `model` (on the meta device), and make its edits there before the next one.

    Raises:
        CookError: placed at the pass that cannot do what it is asked to.
    """
    effects = []
    for each in passes:
        try:
            effect = each.plan(Anatomy(model))
        except CookError as error:
            if error.where is None:
                error.where = each.where
            raise
        Blueprint(edits=list(effect.edits)).apply(model)
        effects.append((each, effect))
    return effects


def _sizes(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Any]:
    count = tally(model, dtype)
    return {"parameters": count.parameters, "bytes": count.bytes, "macs": None}


def _count(model: nn.Module, effect: Effect) -> int:
    from cook.prune.weights import size_of

    return sum(size_of(model.get_submodule(name.rpartition(".")[0])) for name in effect.parameters)


def _silent(line: str) -> None:
    """Say nothing."""
