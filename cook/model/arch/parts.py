"""What an entry of the table of families consists of: layers, attentions, FFNs, and the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Attention:
    """One attention of a layer.

    Attributes:
        projections: the modules that give queries, keys and values; where one gives all three it stands
            there three times, and `layout` says how its rows lie: `stacked` (all queries, then all keys, then
            all values) or `interleaved` (queries, keys and values of one head after the other).
        output: the module that joins what the heads give.
        also: further modules with rows for each head, if the model has them.
        bias: an embedding with one column for each head, if the layer has it.
        counts: attributes of the attention module that say how many `heads` or key-value `groups` there are,
            or their common `width`. Those of its config begin with `config.`.
        alike: whether all layers of the stack must keep the same heads.
        scores: whether they are the scaled products of what the projections give, and nothing else, and
            queries, keys and values are told apart in it: for tensors by name.
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
        """The module that holds the projections."""
        return self.projections[0].rpartition(".")[0]


@dataclass(frozen=True)
class FeedForward:
    """The FFN of a layer: `up` are those modules whose rows are neurons, as far as the model has them."""

    up: tuple[str, ...]
    down: str


CONFIG = {"heads": "num_attention_heads", "groups": "num_key_value_heads", "neurons": "intermediate_size"}


@dataclass(frozen=True)
class Stack:
    """Layers of one kind.

    Attributes:
        layers: the list that holds them; `*` in it stands for every number.
        attention, ffn: the modules that these words mean, in one layer.
        attentions: the one of the tokens among themselves first.
        config: what the config calls the number of `heads`, of key-value `groups`, of `neurons`, of `layers`.
        gives: what a layer gives the next one: its `states`, those in a `pair`, or in words what else.
        norms: what norms outside of both parts are called, those of the attention and those of the FFN.
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
    """What touches a family's residual stream besides its attentions and FFNs.

    Attributes:
        writes: the modules that produce the states which go into the first layer, relative to the base model.
        outer: the norms outside of layers, relative to the base model.
        norms: the norms of a layer, relative to it; empty: those of the stack.
    """

    writes: tuple[str, ...]
    outer: tuple[str, ...]
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        stacks: its stacks of layers, in the order in which they run.
        embeddings: the modules that the word `embeddings` means.
        stream: what touches the residual stream; None where it is not known, so that the width of the model
            cannot change.
    """

    stacks: tuple[Stack, ...]
    embeddings: tuple[str, ...]
    stream: Stream | None = None
