"""What the passes that round declare: names and options.

This module is read to check a recipe: it imports nothing heavy, and neither may its `check`s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cook.passes import SCHEDULE_POINT, SELECTION, WINDOW, Conflict, Spec

WIDTHS = [f"int{bits}" for bits in range(8, 1, -1)]


class QatSpec(Spec):
    """The declaration of `QuantAwareTraining`."""

    name = "quant.qat"
    summary = "train with rounded weights and activations, store the weights as integers"
    phase = "precision"
    options: ClassVar[dict[str, Any]] = {
        "weights": {
            "enum": WIDTHS,
            "default": "int8",
            "description": "width of the weights, a scale a row; int5 to int7 are stored as int8",
        },
        "activations": {
            "enum": [*WIDTHS, None],
            "default": "int8",
            "description": "width of the layers' inputs; null leaves them in floating point",
        },
        "observer": {
            "enum": ["token", "moving"],
            "default": "token",
            "description": "scale of the inputs: one a token, or a moving average of their largest magnitude",
        },
        "decay": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "default": 0.99,
            "description": "of the moving average, an update",
        },
        "freeze": {
            **SCHEDULE_POINT,
            "default": "90%",
            "description": "when the moving average stops moving: " + SCHEDULE_POINT["description"],
        },
        **SELECTION,
        "start": WINDOW["start"],
    }
    examples = ({}, {"weights": "int4", "observer": "moving"})
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "quant.qat": Conflict("a layer is rounded only once", "`include` or `exclude` gives each its own"),
    }
