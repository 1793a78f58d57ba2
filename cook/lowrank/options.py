"""The options of the low-rank passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cook.options import Selection, corpora, option

WAYS = ("parameters", "rank", "ranks", "energy", "budget")
"""How ranks can be given; a recipe uses one of them."""
SHARE = 0.5
"""The share of the targets' parameters that is kept where a recipe gives none of WAYS."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A goal for the whole model; exactly one of the two."""

    parameters: float | None = option(None, "Share of the model's parameters that is left", above=0, below=1)
    macs: float | None = option(
        None, "Share of its multiply-accumulates that is left, on examples of the data", above=0, below=1
    )


@dataclass(frozen=True, kw_only=True)
class LinearOptions(Selection):
    """The options of `lowrank.linear`."""

    method: Literal["data", "fisher", "svd"] = option(
        "data",
        "What the factors approximate best: the outputs on examples (data; DRONE, SVD-LLM), weights by the"
        " importance that the loss gives to their rows (fisher; FWSVD), or the weights (svd), which needs no"
        " data",
    )
    parameters: float | None = option(
        None,
        "Share of the targets' parameters that is kept; 0.5 where no other option sets ranks",
        above=0,
        below=1,
    )
    rank: int | None = option(None, "One rank for all targets", minimum=1)
    ranks: Mapping[str, int] | None = option(
        None,
        "{pattern: rank}: the rank of the targets that a pattern matches; other targets stay whole",
        schema={
            "type": ["object", "null"],
            "additionalProperties": {"type": "integer", "minimum": 1},
            "minProperties": 1,
        },
    )
    energy: float | None = option(
        None,
        "Share of each target's energy that is kept: of squared outputs on examples (data), of squared or"
        " weighted weights (svd, fisher)",
        above=0,
        below=1,
    )
    budget: Budget | None = option(
        None,
        "Share of the whole model that is left, spread over the targets as with `spread`",
        min_properties=1,
    )
    spread: bool | None = option(
        None,
        "Spread the share of parameters over the targets: by how far the loss of each direction moves the"
        " model's outputs (data, where it is the default), or by the share of energy that is lost",
    )
    multiple: Literal[1, 8, 16, 32, 64] = option(
        1, "Ranks are multiples of this number; hardware prefers round sizes"
    )
    fused: Literal["one", "apart"] = option(
        "one", "Fused projections (queries, keys and values in one) as one matrix, or each by itself"
    )
    rows: int = option(256, "Training examples to calibrate with; all if there are fewer", minimum=1)
    dtype: Literal["float32", "float64"] = option(
        "float32", "Type in which sums over examples are computed, with method data"
    )


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """The options of `lowrank.embedding`."""

    rank: int = option(128, "Width of the table: E in a table of V x E and a factor of E x H", minimum=1)
    method: Literal["svd", "frequency"] = option(
        "svd", "How rows count in the approximation: alike, or as often as texts have their token, plus one"
    )
    corpora: tuple[str, ...] | None = corpora("Files in which method frequency counts")
