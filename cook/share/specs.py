"""What the passes that share parameters declare: names and options.

This module is read to check a recipe: it imports nothing heavy, and neither may its `check`s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cook.passes import Conflict, Spec

INITS = ("mean", "first", "best")


class LayersSpec(Spec):
    """The declaration of `ShareLayers`."""

    name = "share.layers"
    summary = "let groups of layers have the same parameters: fewer to store and to train, as many to compute"
    phase = "shape"
    required = ("groups",)
    options: ClassVar[dict[str, Any]] = {
        "groups": {
            "anyOf": [
                {"enum": ["all"]},
                {"type": "integer", "minimum": 2},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                    "minItems": 1,
                },
            ],
            "description": "which layers share: so many consecutive ones at a time, all, or lists of numbers"
            " such as [[0, 1], [2, 3]] that have every layer once; -1 is the last",
        },
        "parts": {
            "enum": ["all", "attention", "ffn"],
            "default": "all",
            "description": "what of the layers is shared, with the norms that belong to it",
        },
        "init": {
            "enum": list(INITS),
            "default": "mean",
            "description": "what a group begins with: the mean of its layers, its first layer, or the best"
            " one, which all others are nearest to",
        },
        "residual": {
            "type": "integer",
            "minimum": 0,
            "default": 0,
            "description": "rank of what each layer keeps of its own beside every shared matrix; 0 is none",
        },
    }
    examples = (
        {"groups": "all"},
        {"groups": 2, "parts": "attention", "init": "first"},
        {"groups": [[0, 1]], "parts": "ffn", "init": "best", "residual": 2},
        {"groups": "all", "residual": 3},
    )
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "prune.layerdrop": Conflict(
            "a layer that shares parameters cannot be left out",
            "prune.layerdrop has all layers that share in `keep`",
        ),
        "prune.layers": Conflict(
            "a layer that shares parameters cannot be left out",
            "prune.layers is above and leaves enough layers, or those that leave share with none",
        ),
        "share.layers": Conflict(
            "what is shared already cannot be shared anew", "`groups` or `parts` gives each its own"
        ),
    }
