"""Declarations of the passes that share parameters: names and options, without heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from cook.options import REQUIRED, option
from cook.passes import Conflict, Spec

INITS = ("mean", "first", "best")
_GROUPS = {
    "anyOf": [
        {"enum": ["all"]},
        {"type": "integer", "minimum": 2},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "minItems": 1,
        },
    ]
}


@dataclass(frozen=True, kw_only=True)
class LayersOptions:
    """The options of `share.layers`."""

    groups: str | int | tuple[tuple[int, ...], ...] = option(
        REQUIRED,
        "Which layers share: the number of consecutive layers in a group, all, or lists of layer numbers such"
        " as [[0, 1], [2, 3]] that hold every layer once; -1 is the last layer",
        schema=_GROUPS,
    )
    parts: Literal["all", "attention", "ffn"] = option(
        "all", "Part of the layers that is shared, with the norms that belong to it"
    )
    init: Literal["mean", "first", "best"] = option(
        "mean",
        "Initial parameters of a group: the mean of its layers, its first layer, or the layer that is"
        " nearest to all others (best)",
    )
    residual: int = option(
        0, "Rank of the residual that each layer keeps beside a shared matrix; 0 for none", minimum=0
    )


class LayersSpec(Spec):
    """The declaration of `ShareLayers`."""

    name = "share.layers"
    summary = "share parameters between layers: fewer to store and train, the same computation"
    phase = "shape"
    Options = LayersOptions
    options: LayersOptions
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
