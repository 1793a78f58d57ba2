"""A goal for what is left of a model's cost, as a recipe writes it, and that cost."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cook.model.units import heads, neurons
from cook.prune import cost

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy
    from cook.model.units import Units
    from cook.session import Session

GOALS = ("macs", "parameters", "latency")
EXAMPLES = 64
"""Training examples of which the longest is what costs are counted and timed with."""
_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
BUDGET: dict[str, Any] = {
    "type": "object",
    "properties": {
        "macs": {**_SHARE, "description": "multiply-accumulates, counted as the report does"},
        "parameters": {**_SHARE, "description": "numbers of the model, embeddings too"},
        "latency": {**_SHARE, "description": "time of one example, measured when the run begins"},
        "device": {"type": "string", "description": "to measure latency on; the run's when left out"},
    },
    "additionalProperties": False,
    "minProperties": 1,
    "description": "the share of the whole model's cost that is left: {macs: 0.3}, {parameters: 0.5}"
    " or {latency: 0.5, device: cpu}",
}


def read(budget: Mapping[str, Any]) -> tuple[str, float]:
    """Of what a budget is, and the share."""
    goal = next(name for name in GOALS if name in budget)
    return goal, float(budget[goal])


def everything(anatomy: Anatomy) -> list[Units]:
    """All heads and neurons, in the order of a cost's curves."""
    return [*heads(anatomy), *neurons(anatomy)]


def measured(session: Session, budget: Mapping[str, Any]) -> cost.Cost:
    """What the model costs now, by its heads and neurons; the same in all processes."""
    model, units = session.model, everything(session.anatomy)
    goal, _ = read(budget)
    if goal == "parameters":
        return cost.parameters(model, units)
    batches = session.examples(EXAMPLES)
    longest = max(batches, key=lambda batch: next(iter(batch.values()))[0].numel())
    example = {name: value[:1] for name, value in longest.items() if name != "labels"}
    if goal == "macs":
        return cost.multiply_accumulates(model, units, example)
    device = budget.get("device", str(model.device))

    def build() -> nn.Module:
        return copy.deepcopy(model).to(device)

    placed = {name: value.to(device) for name, value in example.items()}
    timed = cost.milliseconds(build, everything, placed)
    curves = [session.agreed(curve).cpu() for curve in timed.curves]
    rest = session.agreed(torch.tensor(timed.rest, dtype=torch.float64))
    return cost.Cost(goal, curves, timed.layers, float(rest))
