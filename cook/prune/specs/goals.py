"""The option `budget` of passes that remove units, and what it asks for; `budget.py` measures it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cook.passes import Spec

GOALS = ("parameters", "macs", "latency")
_SHARE = {"type": ["number", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": None}
BUDGET: dict[str, Any] = {
    "type": ["object", "null"],
    "properties": {
        "parameters": {**_SHARE, "description": "share of the model's parameters that is left"},
        "macs": {**_SHARE, "description": "share of its multiply-accumulates, on examples of the data"},
        "latency": {**_SHARE, "description": "share of its time, measured on this machine"},
        "device": {
            "enum": ["cpu", "cuda", None],
            "default": None,
            "description": "where time is measured; where the model trains when left out",
        },
        "batch": {
            "type": "integer",
            "minimum": 1,
            "default": 1,
            "description": "examples of a forward that is timed",
        },
    },
    "additionalProperties": False,
    "minProperties": 1,
    "default": None,
    "description": "share of the model's parameters, macs or latency that is left; in the place of sparsity",
}
"""The option, the same wherever there is a goal: `budget: {macs: 0.3}`, `{latency: 0.5, device: cpu}`."""

NEEDED: dict[str, Any] = {
    **{key: value for key, value in BUDGET.items() if key != "default"},
    "type": "object",
    "description": "share of the model's parameters, macs or latency that is left",
}
"""The same for a pass that has no other goal."""


def goal_of(budget: Mapping[str, Any]) -> tuple[str, float]:
    """Which cost, and the share of it that is left at most."""
    ((name, share),) = ((name, budget[name]) for name in GOALS if budget.get(name) is not None)
    return name, float(share)


def check(owner: Spec, budget: Mapping[str, Any]) -> None:
    """Raise CookError for a budget that does not say one thing."""
    named = [name for name in GOALS if budget.get(name) is not None]
    if len(named) != 1:
        found = " and ".join(named) or "none of them"
        message = f"expected one of parameters, macs and latency, found {found}"
        raise owner.error(message, option="budget", hint="write budget: {macs: 0.3}")
    if named != ["latency"]:
        for option in ("device", "batch"):
            if budget.get(option) != BUDGET["properties"][option]["default"]:
                message = f"means nothing with {named[0]}"
                raise owner.error(message, option=f"budget.{option}", hint="it is for latency: leave it out")


def wants(budget: Mapping[str, Any]) -> frozenset[str]:
    """Parameters are counted without examples."""
    return frozenset() if goal_of(budget)[0] == "parameters" else frozenset({"calibration"})
