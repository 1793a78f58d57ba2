"""The option `budget` of passes that remove units, and what it asks for; `budget.py` measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cook.options import option

if TYPE_CHECKING:
    from cook.passes import Spec

GOALS = ("parameters", "macs", "latency")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The option `budget`: `{macs: 0.3}`, or `{latency: 0.5, device: cpu}`; exactly one of GOALS."""

    parameters: float | None = option(None, "Share of the model's parameters that is left", above=0, below=1)
    macs: float | None = option(
        None, "Share of its multiply-accumulates that is left, on examples of the data", above=0, below=1
    )
    latency: float | None = option(
        None, "Share of its latency that is left, measured on this machine", above=0, below=1
    )
    device: Literal["cpu", "cuda"] | None = option(
        None, "Where latency is measured; null: where the model is trained"
    )
    batch: int = option(1, "Examples per forward when latency is measured", minimum=1)


def goal_of(budget: Budget) -> tuple[str, float]:
    """Which cost, and the share of it that is left at most."""
    ((name, share),) = ((name, getattr(budget, name)) for name in GOALS if getattr(budget, name) is not None)
    return name, float(share)


def check(owner: Spec, budget: Budget) -> None:
    """Raise CookError for a budget that does not say one thing."""
    named = [name for name in GOALS if getattr(budget, name) is not None]
    if len(named) != 1:
        found = " and ".join(named) or "none of them"
        message = f"expected one of parameters, macs and latency, found {found}"
        raise owner.error(message, option="budget", hint="write budget: {macs: 0.3}")
    if named != ["latency"]:
        for name, default in (("device", None), ("batch", 1)):
            if getattr(budget, name) != default:
                message = f"means nothing with {named[0]}"
                raise owner.error(message, option=f"budget.{name}", hint="it is for latency: leave it out")


def wants(budget: Budget) -> frozenset[str]:
    """Parameters are counted without examples."""
    return frozenset() if goal_of(budget)[0] == "parameters" else frozenset({"calibration"})
