"""Where the layers, attention, FFN and embeddings of a model family are.

A family is one entry of a table; nothing else in cook knows a family's module names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from cook.errors import CookError

WORDS = ("layers", "attention", "ffn", "embeddings", "head")
_LAYERS = re.compile(
    r"layers(?:\[(?P<index>-?\d+)\]|\[(?P<first>-?\d*):(?P<last>-?\d*)\])?(?:\.(?P<part>\w+))?$"
)


@dataclass(frozen=True)
class Family:
    """Names inside the base model (`layers`, `embeddings`) and inside one layer (the others).

    `projections` give queries, keys and values; where one gives all three, it stands there three times.
    """

    layers: str
    attention: tuple[str, ...]
    ffn: tuple[str, ...]
    embeddings: tuple[str, ...]
    projections: tuple[str, str, str]


_BERT = Family(
    "encoder.layer",
    ("attention",),
    ("intermediate", "output"),
    ("embeddings",),
    ("attention.self.query", "attention.self.key", "attention.self.value"),
)
_LLAMA = Family(
    "layers",
    ("self_attn",),
    ("mlp",),
    ("embed_tokens",),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "distilbert": Family(
        "transformer.layer",
        ("attention",),
        ("ffn",),
        ("embeddings",),
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    ),
    "vit": Family(
        "layers",
        ("attention",),
        ("mlp",),
        ("embeddings",),
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    ),
    "gpt2": Family("h", ("attn",), ("mlp",), ("wte", "wpe"), ("attn.c_attn", "attn.c_attn", "attn.c_attn")),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


class Anatomy:
    """A model seen through its family's entry; works on the meta device as well.

    Args:
        model: a Hugging Face model, with or without a head.
        teachers: the models that it will learn from.
    """

    def __init__(self, model: nn.Module, teachers: Sequence[Anatomy] = ()):
        self.model = model
        self.teachers = list(teachers)
        self.kind: str = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        self.family = FAMILIES.get(self.kind)

    @cached_property
    def prefix(self) -> str:
        """What stands before the base model's names: `bert.` in a headed BERT, nothing in a bare one."""
        name = getattr(self.model, "base_model_prefix", "")
        return f"{name}." if name and hasattr(self.model, name) else ""

    @cached_property
    def layers(self) -> list[str]:
        """The full name of every layer, first to last.

        Raises:
            CookError: when the family is unknown.
        """
        path = self.prefix + self._known().layers
        return [f"{path}.{index}" for index, _ in enumerate(self.model.get_submodule(path).children())]

    def projections(self, layer: str) -> tuple[str, str, str]:
        """The full names of the modules that give a layer's queries, keys and values.

        Args:
            layer: a name out of `layers`.
        """
        query, key, value = self._known().projections
        return f"{layer}.{query}", f"{layer}.{key}", f"{layer}.{value}"

    @cached_property
    def causal(self) -> bool:
        """Whether tokens attend to earlier ones only."""
        query = self.projections(self.layers[0])[0]
        attention = self.model.get_submodule(query.rpartition(".")[0])
        return bool(getattr(attention, "is_causal", False))

    @cached_property
    def window(self) -> int | None:
        """How many tokens up to itself a token attends to, in every layer alike; None: to all of them."""
        config = getattr(self.model, "config", None)
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
        return getattr(config, "sliding_window", None) if kinds == {"sliding_attention"} else None

    def roots(self, word: str) -> list[str] | None:
        """The names of the modules that an anatomy word stands for; None when it is no such word.

        `layers[3]`, `layers[0:6]` and `layers[-1]` count as Python does; `layers[2].attention` is a
        part of a layer.

        Raises:
            CookError: when the family is unknown, or a layer number is out of range.
        """
        if word == "head":
            return self._head()
        if word == "embeddings":
            return [self.prefix + name for name in self._known().embeddings]
        if word in ("attention", "ffn"):
            return self._parts(self.layers, word)
        if not (match := _LAYERS.match(word)):
            return None
        chosen = self._numbered(word, match)
        return self._parts(chosen, match["part"]) if match["part"] else chosen

    def _numbered(self, word: str, match: re.Match[str]) -> list[str]:
        layers = self.layers
        if match["index"]:
            index = int(match["index"])
            if not -len(layers) <= index < len(layers):
                raise CookError(f"{word}: the model has {len(layers)} layers, 0 to {len(layers) - 1}")
            return [layers[index]]
        if match["first"] is None:
            return layers
        first, last = (int(text) if text else None for text in (match["first"], match["last"]))
        if not (chosen := layers[first:last]):
            raise CookError(f"{word} selects none of the model's {len(layers)} layers")
        return chosen

    def _parts(self, layers: list[str], part: str) -> list[str]:
        if part not in ("attention", "ffn"):
            raise CookError(
                f"a layer has no part {part!r}", hint="the parts of a layer are attention and ffn"
            )
        names: tuple[str, ...] = getattr(self._known(), part)
        return [f"{layer}.{name}" for layer in layers for name in names]

    def _head(self) -> list[str]:
        base = self.prefix.removesuffix(".")
        return [name for name, _ in self.model.named_children() if base and name != base]

    def _known(self) -> Family:
        if self.family is None:
            raise CookError(
                f"cook does not know where the parts of a {self.kind!r} model are",
                hint=f"name modules by glob ('*.dense'), 're:...' or class; known: {', '.join(FAMILIES)}",
            )
        return self.family
