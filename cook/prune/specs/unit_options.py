"""The options of the passes that remove heads, neurons, layers and hidden dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cook.options import POINT_HELP, REQUIRED, Selection, Start, option, schedule_point
from cook.prune.specs.goals import Budget

GOAL = "Share of the model's parameters, multiply-accumulates or latency that is left"
Importance = Literal["gradient", "fisher", "magnitude", "random"]
IMPORTANCE = (
    "Importance of a head or neuron: the change of the loss on examples to first order (gradient; Michel et"
    " al. 2019), its square (fisher; Kwon et al. 2022), the norm of the weights, or random as a control"
)
Multiple = Literal[1, 8, 16, 32, 64]
MULTIPLE = "Widths of FFNs stay multiples of this number; hardware prefers round widths"


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions(Selection, Start):
    """The options that all passes share which remove heads and neurons on a schedule."""

    rows: int = option(512, "Training examples for gradients; all if there are fewer", minimum=1)
    seed: int = option(0, "Random seed", minimum=0)
    minimum: int = option(1, "Minimum units kept per layer", minimum=1)
    limit: float = option(1.0, "Largest share of its units that one layer may lose", above=0, maximum=1)
    schedule: Literal["cubic", "linear", "constant"] = option(
        "cubic", "Growth of the share from the start of the window to its end; constant removes it at once"
    )
    every: str | int | None = schedule_point(
        None, "How often units are removed and scored again; null: every 10 % of the window"
    )
    end: str | int = schedule_point("50%", f"When the pass ends: {POINT_HELP}")


@dataclass(frozen=True, kw_only=True)
class HeadsOptions(ScheduleOptions):
    """The options of `prune.heads`."""

    sparsity: float | None = option(
        None, "Share of all units that is removed; give either this or a budget", above=0, below=1
    )
    budget: Budget | None = option(None, f"{GOAL}, in place of sparsity", min_properties=1)
    importance: Importance = option("gradient", IMPORTANCE)
    normalize: bool = option(
        False, "Divide the scores of each layer by their norm (Michel et al. 2019), so that layers lose alike"
    )
    scope: Literal["global", "layer"] = option(
        "global", "Compare units over all layers, or remove the same share from each layer"
    )


@dataclass(frozen=True, kw_only=True)
class NeuronsOptions(HeadsOptions):
    """The options of `prune.neurons`."""

    multiple: Multiple = option(8, MULTIPLE)


@dataclass(frozen=True, kw_only=True)
class UnitsOptions(ScheduleOptions):
    """The options of `prune.units`."""

    budget: Budget = option(REQUIRED, GOAL, min_properties=1)
    importance: Importance = option("fisher", IMPORTANCE)
    multiple: Multiple = option(8, MULTIPLE)


@dataclass(frozen=True, kw_only=True)
class StructuredOptions(Start):
    """The options of `prune.structured`."""

    budget: Budget = option(REQUIRED, GOAL, min_properties=1)
    gates: tuple[Literal["layers", "heads", "neurons", "hidden"], ...] = option(
        ("heads", "neurons"),
        "What may be removed; `hidden` stands for dimensions of the residual stream, the model's width",
        min_items=1,
        unique=True,
    )
    minimum: int = option(1, "Minimum heads, and minimum neurons, kept in each layer that is kept", minimum=1)
    warmup: float = option(
        0.5,
        "Share of the window in which the target moves from the whole model to the goal",
        minimum=0,
        maximum=1,
    )
    speed: float | None = option(
        None, "Learning rate of the gates, as a multiple of the run's; null: fitted to the window", above=0
    )
    seed: int = option(0, "Random seed of the gates", minimum=0)
    end: str | int = schedule_point("60%", f"When the pass ends: {POINT_HELP}")
