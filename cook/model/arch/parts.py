"""Components of a family's entry: layers, attentions, FFNs, and the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Attention:
    """One attention of a layer.

    Attributes:
        projections: the modules that produce queries, keys and values; a fused one is listed three times, and
            `layout` states the order of its rows: `stacked` (all queries, then all keys, then all values) or
            `interleaved` (queries, keys and values of one head after the other).
        output: the output projection, which combines the heads.
        also: further modules with rows for each head, if the model has them.
        bias: an embedding with one column per head, if the layer has it.
        counts: attributes of the attention module for the number of `heads` or key-value `groups`, or their
            total `width`. Those of its config start with `config.`.
        alike: whether all layers of the stack must keep the same heads.
        scores: whether scores are exactly the scaled products of the projections' outputs, with distinct
            queries, keys and values: required for tensors by name.
    """

    projections: tuple[str, str, str]
    output: str
    layout: str = "apart"
    also: tuple[str, ...] = ()
    bias: str | None = None
    counts: Mapping[str, str] = field(default_factory=dict)
    alike: bool = False
    scores: bool = True

    @property
    def module(self) -> str:
        """The module that contains the projections."""
        return self.projections[0].rpartition(".")[0]


@dataclass(frozen=True)
class FeedForward:
    """The FFN of a layer: `up` are the modules whose rows are neurons, of which a model may have some."""

    up: tuple[str, ...]
    down: str


CONFIG = {"heads": "num_attention_heads", "groups": "num_key_value_heads", "neurons": "intermediate_size"}


@dataclass(frozen=True)
class Stack:
    """Layers of one kind.

    Attributes:
        layers: path of the list that holds them; `*` in it matches every number.
        attention, ffn: the modules that these words denote, in one layer.
        attentions: all attentions, self-attention first.
        config: config keys for the number of `heads`, of key-value `groups`, of `neurons`, of `layers`.
        gives: what a layer returns to the next: its `states`, these in a `pair`, or a description of others.
        norms: names of the norms outside of both parts: those of the attention and those of the FFN.
    """

    layers: str
    attention: tuple[str, ...]
    ffn: tuple[str, ...]
    attentions: tuple[Attention, ...]
    feed_forward: FeedForward
    config: Mapping[str, str] = field(default_factory=lambda: dict(CONFIG))
    gives: str = "states"
    norms: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True)
class Stream:
    """Modules connected to a family's residual stream besides its attentions and FFNs.

    Attributes:
        writes: the modules that produce the input of the first layer, relative to the base model.
        outer: the norms outside of layers, relative to the base model.
        norms: the norms of a layer, relative to it; if empty, those of the stack.
    """

    writes: tuple[str, ...]
    outer: tuple[str, ...]
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        stacks: its stacks of layers, in the order in which they run.
        embeddings: the modules that the word `embeddings` denotes.
        stream: the modules connected to the residual stream; None if unknown, so that the model's width
            cannot be changed.
    """

    stacks: tuple[Stack, ...]
    embeddings: tuple[str, ...]
    stream: Stream | None = None
