"""The options of `lowrank.linear`."""

from __future__ import annotations

from typing import Any

from cook.passes import SELECTION

WAYS = ("parameters", "rank", "ranks", "energy", "budget")
"""How ranks can be asked for; a recipe takes one of them."""
SHARE = 0.5
"""Of the targets' parameters that is kept where a recipe takes none."""
_SHARE: dict[str, Any] = {
    "type": ["number", "null"],
    "exclusiveMinimum": 0,
    "exclusiveMaximum": 1,
    "default": None,
}

OPTIONS: dict[str, Any] = {
    "method": {
        "enum": ["data", "fisher", "svd"],
        "default": "data",
        "description": "what the factors keep best: the outputs on examples (DRONE, SVD-LLM), weights by what"
        " the loss says to their rows (FWSVD), or weights alike, which needs no data",
    },
    "parameters": {
        **_SHARE,
        "description": "share of the targets' parameters that is left; 0.5 where nothing else says ranks",
    },
    "rank": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "one rank for all targets",
    },
    "ranks": {
        "type": ["object", "null"],
        "additionalProperties": {"type": "integer", "minimum": 1},
        "minProperties": 1,
        "default": None,
        "description": "{pattern: rank}: the rank of the targets that a pattern matches, and of no others",
    },
    "energy": {
        **_SHARE,
        "description": "share of each target's energy that is kept: of squared outputs on examples with"
        " data, of squared (weighted) weights else",
    },
    "budget": {
        "type": ["object", "null"],
        "properties": {
            "parameters": {**_SHARE, "description": "share of the model's parameters that is left"},
            "macs": {**_SHARE, "description": "share of its multiply-accumulates, on examples of the data"},
        },
        "additionalProperties": False,
        "minProperties": 1,
        "default": None,
        "description": "share of the whole model that is left, spread over the targets as with `spread`",
    },
    "spread": {
        "type": ["boolean", "null"],
        "default": None,
        "description": "spread the share of parameters over the targets: by how far what each loses moves the"
        " model's outputs (data, where it is the default), or by the share of its energy that it loses",
    },
    "multiple": {
        "enum": [1, 8, 16, 32, 64],
        "default": 1,
        "description": "of what each rank is one; hardware likes round sizes",
    },
    "fused": {
        "enum": ["one", "apart"],
        "default": "one",
        "description": "fused products (queries, keys and values in one) as one matrix, or each as its own",
    },
    "rows": {
        "type": "integer",
        "minimum": 1,
        "default": 256,
        "description": "training examples to calibrate with, all there are if fewer",
    },
    "dtype": {
        "enum": ["float32", "float64"],
        "default": "float32",
        "description": "what sums over examples are computed in, with method data",
    },
    **SELECTION,
}
