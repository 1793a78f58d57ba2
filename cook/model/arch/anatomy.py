"""Locates the layers, attention, FFN and embeddings of a model by the entry of its family.

For a family without an entry, one is inferred if its layers consist of exactly the modules of a known kind
of layer and contain no other matrix.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.arch.families import COUNTS, FAMILIES, HEAD_WIDTHS
from cook.model.arch.parts import Family, Stack
from cook.model.nn import surgery
from cook.model.nn.linear import linears
from cook.model.nn.skipped import Skipped

WORDS = ("layers", "attention", "ffn", "embeddings", "head")
_LAYERS = re.compile(
    r"layers(?:\[(?P<index>-?\d+)\]|\[(?P<first>-?\d*):(?P<last>-?\d*)\])?(?:\.(?P<part>\w+))?$"
)


class Anatomy:
    """The structure of a model according to its family's entry; works on the meta device as well.

    Args:
        model: a Hugging Face model, with or without a head.
        teachers: the models to distil from.
    """

    def __init__(self, model: nn.Module, teachers: Sequence[Anatomy] = ()):
        self.model = model
        self.teachers = list(teachers)
        self.kind: str = getattr(getattr(model, "config", None), "model_type", type(model).__name__)

    @cached_property
    def family(self) -> Family | None:
        """The family's entry; None if there is none and none can be inferred."""
        return FAMILIES.get(self.kind) or inferred(self.model)

    @cached_property
    def prefix(self) -> str:
        """The prefix of the base model's names: `bert.` in a BERT with a head, empty in a base model."""
        name = getattr(self.model, "base_model_prefix", "")
        return f"{name}." if name and hasattr(self.model, name) else ""

    @cached_property
    def layers(self) -> list[str]:
        """The full name of every layer, first to last.

        Raises:
            CookError: the family is unknown.
        """
        return list(self.stacks)

    @property
    def live(self) -> list[str]:
        """The layers that no pass has dropped; their names are unchanged."""
        return [name for name in self.layers if not isinstance(self.model.get_submodule(name), Skipped)]

    @cached_property
    def stacks(self) -> dict[str, Stack]:
        """The kind of each layer, by its full name, first to last.

        Raises:
            CookError: the family is unknown, or the model lacks layers at the family's path.
        """
        stacks = self._known().stacks
        found = {name: stack for stack in stacks for name in _layers(self.model, self.prefix, stack.layers)}
        if not found:
            places = " or ".join(self.prefix + stack.layers for stack in stacks)
            raise CookError(f"this {self.kind} model has no layers at {places}")
        return found

    @property
    def mixed(self) -> bool:
        """Whether there are several kinds of layers: those of an encoder and a decoder."""
        return len({id(stack) for stack in self.stacks.values()}) > 1

    def projections(self, layer: str) -> tuple[str, str, str]:
        """The full names of the modules that produce a layer's queries, keys and values.

        Args:
            layer: one of `layers`.
        """
        query, key, value = self.stacks[layer].attentions[0].projections
        return f"{layer}.{query}", f"{layer}.{key}", f"{layer}.{value}"

    @cached_property
    def causal(self) -> bool:
        """Whether tokens attend only to earlier ones."""
        query = self.projections(self.live[0])[0]
        attention = self.model.get_submodule(query.rpartition(".")[0])
        return bool(getattr(attention, "is_causal", False))

    def reach(self, name: str) -> int | None:
        """The attention window, in tokens including the current one, of a tensor's layer; None if unlimited.

        Args:
            name: of a tensor, such as `layers[3].attention.scores`.
        """
        config: Any = getattr(self.model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        window: int | None = getattr(config, "sliding_window", None)
        layer = self._layer_of(name)
        if layer is None or window is None:
            return window
        kinds = getattr(config, "layer_types", None)
        number = self.layers.index(layer)
        if kinds and number < len(kinds):
            return window if kinds[number] == "sliding_attention" else None
        attention = self.model.get_submodule(self.projections(layer)[0].rpartition(".")[0])
        own: int | None = getattr(attention, "sliding_window", window)
        return own

    def attends(self, name: str, tokens: int) -> Tensor:
        """Which tokens each token may attend to in a tensor's layer, ignoring padding: bool [tokens, tokens].

        Args:
            name: of a tensor.
        """
        allowed = torch.ones(tokens, tokens, dtype=torch.bool)
        reach = self.reach(name) or tokens
        if self.causal or self.decodes(name):
            return allowed.tril().triu(1 - reach)
        return allowed.tril(reach - 1).triu(1 - reach)

    def _layer_of(self, name: str) -> str | None:
        if numbered := re.match(r"layers\[(-?\d+)\]", name):
            return self.layers[int(numbered[1])]
        return next(
            (layer for layer in self.layers if f"{name}.".startswith((f"{layer}.", f"{layer}["))), None
        )

    def roots(self, word: str) -> list[str] | None:
        """The names of the modules that an anatomy word denotes; None if it is not such a word.

        `layers[3]`, `layers[0:6]` and `layers[-1]` are indexed as in Python; `layers[2].attention` is a
        part of a layer.

        Raises:
            CookError: the family is unknown, or a layer number is out of range.
        """
        if word == "head":
            return self._head()
        if word == "embeddings":
            return self._embeddings()
        if word in ("attention", "ffn"):
            return self._parts(self.live, word)
        if not (match := _LAYERS.match(word)):
            return None
        live = set(self.live)
        chosen = [layer for layer in self._numbered(word, match) if layer in live]
        if not chosen:
            raise CookError(
                f"{word} is left out by another pass", hint="numbers are those of the whole model"
            )
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
        return [f"{layer}.{name}" for layer in layers for name in getattr(self.stacks[layer], part)]

    def _embeddings(self) -> list[str]:
        """The embeddings of the family's entry, and every input embedding that the forward uses.

        Encoder and decoder may have separate modules besides that of the entry, tied to it or not. In a
        family without an entry these are the embedding tables of the base model outside of its layers.
        """
        model: Any = self.model
        entry = () if self.family is None else self.family.embeddings
        found = [name for name in (self.prefix + each for each in entry) if surgery.has(model, name)]
        known = {id(each) for name in found for each in model.get_submodule(name).parameters()}
        repeated = [name for name, each in model.named_modules() if isinstance(each, nn.ModuleList)]
        for name, module in model.named_modules():
            above = any(name.startswith(f"{each}.") for each in (*found, *repeated))
            if isinstance(module, nn.Embedding) and not above and id(module.weight) not in known:
                known.add(id(module.weight))
                found.append(name)
        if not found:
            self._known()
        return found

    def _head(self) -> list[str]:
        base = self.prefix.removesuffix(".")
        beside = [name for name, _ in self.model.named_children() if base and name != base]
        head = None
        with suppress(NotImplementedError, AttributeError):
            head = self.model.get_output_embeddings()  # type: ignore[operator]
        return beside or [name for name, module in self.model.named_modules() if name and module is head]

    def decodes(self, name: str) -> bool:
        """Whether the named tensor belongs to, or is output by, the decoder of an encoder-decoder model."""
        both = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        if not both or self.family is None:
            return False
        if name == "logits":
            return True
        layer = self._layer_of(name)
        return layer is not None and self.stacks[layer] is not self.stacks[self.layers[0]]

    def _known(self) -> Family:
        if self.family is None:
            raise CookError(
                f"cook does not know where the parts of a {self.kind!r} model are",
                hint=f"name modules by glob ('*.dense'), 're:...' or class; known: {', '.join(FAMILIES)}",
            )
        return self.family


def inferred(model: nn.Module) -> Family | None:
    """The family of a model without an entry, if all its layers match those of a family with one.

    Each layer must have every module of that kind of layer and no other matrix, because further modules
    (experts, adapters, a second attention) would be ignored.
    """
    name = getattr(model, "base_model_prefix", "")
    base: Any = getattr(model, name) if name and hasattr(model, name) else model
    known = [stack for family in FAMILIES.values() for stack in family.stacks if "*" not in stack.layers]
    found = []
    for path, module in base.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        live = [layer for layer in module if not isinstance(layer, Skipped)]
        if not live:
            continue
        # Equal apart from the path of the list and from what only entries can state.
        fitting = [stack for stack in known if all(_built_like(layer, stack) for layer in live)]
        if fitting:
            found.append(_elsewhere(fitting[0], path, live[0]) if _agree(fitting) else None)
        elif linears(module):
            return None  # layers of another kind, perhaps a decoder's: a partial match does not count
    embeddings = None
    with suppress(NotImplementedError, AttributeError):  # a model without token input may not define it
        embeddings = base.get_input_embeddings()
    names = tuple(path for path, module in base.named_modules() if module is embeddings)
    if not found or None in found:
        return None
    return Family(tuple(stack for stack in found if stack is not None), names)


def _built_like(layer: nn.Module, stack: Stack) -> bool:
    wanted = {name for each in stack.attentions for name in (*each.projections, each.output)}
    wanted |= {*stack.feed_forward.up, stack.feed_forward.down}
    if wanted != set(linears(layer)):
        return False
    # Position tables, routers, stacked experts: any matrix outside of these modules.
    known = {id(number) for name in wanted for number in layer.get_submodule(name).parameters()}
    if any(number.ndim > 1 and id(number) not in known for number in layer.parameters()):
        return False
    # A norm over all heads, or one value per head, would have to be cut too.
    for each in stack.attentions:
        attention: Any = layer.get_submodule(each.module)
        width = head_width(attention)
        inside = {id(number) for name in wanted for number in layer.get_submodule(name).parameters()}
        others = [number for number in attention.parameters() if id(number) not in inside]
        if width is None or any(tuple(number.shape) != (width,) for number in others):
            return False
    return True


def head_width(attention: nn.Module) -> Any | None:
    """The width of one head from the attention module's attributes, under one of several names, or None."""
    return next((getattr(attention, name) for name in HEAD_WIDTHS if hasattr(attention, name)), None)


def _agree(stacks: Sequence[Stack]) -> bool:
    """Whether these stacks are equivalent, so that either can be used."""
    return len({(each.attentions[0].layout, each.attentions[0].alike) for each in stacks}) == 1


def _elsewhere(stack: Stack, path: str, layer: nn.Module) -> Stack:
    # Module names do not tell the attention's counts or how it computes scores: every attribute that
    # entries use as a count is updated if the module has it.
    attentions = tuple(replace(each, counts=COUNTS, scores=False) for each in stack.attentions)
    # What it returns besides its states is known only from its code.
    annotation = inspect.signature(type(layer).forward).return_annotation
    gives = "states" if annotation in (Tensor, "torch.Tensor", "Tensor") else "perhaps more than their states"
    return replace(stack, layers=path, attentions=attentions, gives=gives)


def _layers(model: nn.Module, prefix: str, path: str) -> Iterator[str]:
    """The full names of the layers at a path, in which `*` matches any number; none if it does not exist."""
    before, star, after = path.partition(".*")
    if not surgery.has(model, prefix + before):
        return
    for number, _ in enumerate(model.get_submodule(prefix + before).children()):
        if star:
            yield from _layers(model, f"{prefix}{before}.{number}.", after.removeprefix("."))
        else:
            yield f"{prefix}{before}.{number}"
