"""Declarations of the quantisation passes: names and options, without heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from cook.options import POINT_HELP, Selection, Start, option, schedule_point
from cook.passes import Conflict, Spec

Width = Literal["int8", "int7", "int6", "int5", "int4", "int3", "int2"]


@dataclass(frozen=True, kw_only=True)
class QatOptions(Selection, Start):
    """The options of `quant.qat`."""

    weights: Width = option(
        "int8", "Width of the weights, with one scale per row; int5 to int7 are stored as int8"
    )
    activations: Width | None = option(
        "int8", "Width of the layers' inputs; null leaves them in floating point"
    )
    observer: Literal["token", "moving"] = option(
        "token", "Scale of the inputs: one per token, or a moving average of the largest magnitude"
    )
    decay: float = option(0.99, "Decay of the moving average per update", above=0, below=1)
    freeze: str | int = schedule_point("90%", f"When the moving average is frozen: {POINT_HELP}")


class QatSpec(Spec):
    """The declaration of `QuantAwareTraining`."""

    name = "quant.qat"
    summary = "train with rounded weights and activations; the weights are stored as integers"
    phase = "precision"
    Options = QatOptions
    options: QatOptions
    examples = ({}, {"weights": "int4", "observer": "moving"})
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "quant.qat": Conflict("a layer is rounded only once", "`include` or `exclude` gives each its own"),
    }
