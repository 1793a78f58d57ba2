"""The options of the passes that remove heads and neurons."""

from __future__ import annotations

from typing import Any

from cook.passes import SCHEDULE_POINT, SELECTION, WINDOW
from cook.prune.specs.goals import BUDGET

UNITS: dict[str, Any] = {
    "sparsity": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "default": None,
        "description": "share of all that leaves; either this or a budget",
    },
    "budget": BUDGET,
    "importance": {
        "enum": ["gradient", "fisher", "magnitude", "random"],
        "default": "gradient",
        "description": "what says which go: how the loss of examples would change (Michel et al. 2019), the"
        " square of that (Kwon et al. 2022), the size of their weights, or chance, as a control",
    },
    "normalize": {
        "type": "boolean",
        "default": False,
        "description": "divide each layer's scores by their norm (Michel et al.): layers then lose alike",
    },
    "rows": {
        "type": "integer",
        "minimum": 1,
        "default": 512,
        "description": "training examples that gradients are taken of, all there are if fewer",
    },
    "seed": {"type": "integer", "minimum": 0, "default": 0, "description": "of chance"},
    "scope": {
        "enum": ["global", "layer"],
        "default": "global",
        "description": "compare over all layers together, or take as many from each",
    },
    "minimum": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "as many stay in each layer at least",
    },
    "limit": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 1.0,
        "description": "largest share that one layer loses",
    },
    "schedule": {
        "enum": ["cubic", "linear", "constant"],
        "default": "cubic",
        "description": "how the share grows from the start of the window to its end; constant: all at once",
    },
    "every": {
        **SCHEDULE_POINT,
        "default": None,
        "type": ["string", "integer", "null"],
        "description": "how often some go and the scores are taken anew; 10 % of the window when left out",
    },
    **SELECTION,
    **WINDOW,
    "end": {**WINDOW["end"], "default": "50%"},
}
"""The options of all passes of the kind."""

MULTIPLE: dict[str, Any] = {
    "enum": [1, 8, 16, 32, 64],
    "default": 8,
    "description": "of what each layer's width stays or becomes one; hardware likes round widths",
}
"""The option of those that remove neurons."""
