"""Where a model keeps a row for each token, and how rows leave it.

Rows are found by identity (what transformers says is the input and the output embedding, and what shares
their parameters) and by their number; what has as many entries and is not understood is refused. The
result is said by `vocab_size` in the config alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from cook.errors import CookError
from cook.model import linear, surgery

TOKENS = ("input_ids", "decoder_input_ids")
"""What a batch calls the numbers of tokens."""
LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""What a generation config calls lists of token numbers that do not end in `token_id`."""


@dataclass(frozen=True)
class Vocabulary:
    """The parts of a model that have an entry for each token, by name.

    Attributes:
        entries: how many tokens there are.
        embeddings: modules; their rows are entries.
        heads: linear layers; their outputs are entries.
        vectors: parameters and buffers beside them, [entries] or [1, entries].
    """

    entries: int
    embeddings: list[str]
    heads: list[str]
    vectors: list[str]


@dataclass(frozen=True)
class Renumbering:
    """Which tokens stay: their numbers before, in increasing order, are what the new numbers count.

    Attributes:
        kept: int64 [new entries].
        entries: of the vocabulary before.
        unknown: the number before of the token that stands for all that are gone.
        labels: whether labels are tokens too, and outputs have an entry for each.
    """

    kept: Tensor
    entries: int
    unknown: int
    labels: bool = False

    @cached_property
    def new(self) -> Tensor:
        """The new number of each token, -1 where it is gone: int64 [entries]."""
        numbers = torch.full((self.entries,), -1, dtype=torch.long)
        numbers[self.kept] = torch.arange(len(self.kept))
        return numbers

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch in the new numbers, with the unknown token in the place of what is gone."""
        new = torch.where(self.new < 0, self.new[self.unknown], self.new)
        return self._mapped(batch, new)

    def known(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same batch in the old numbers: what a model that still has all rows would read."""
        numbers = torch.arange(self.entries)
        return self._mapped(batch, torch.where(self.new < 0, self.unknown, numbers))

    def outputs(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of a model that still has all rows, without the entries of tokens that are gone."""
        return {
            name: value[..., self.kept.to(value.device)] if self._per_token(name, value) else value
            for name, value in found.items()
        }

    def _per_token(self, name: str, value: Tensor) -> bool:
        return self.labels and name.endswith("logits") and value.shape[-1] == self.entries

    def _mapped(self, batch: Mapping[str, Tensor], numbers: Tensor) -> dict[str, Tensor]:
        names = (*TOKENS, "labels") if self.labels else TOKENS
        result = dict(batch)
        for name in names:
            if name in result:
                old = result[name]
                # Labels below zero stand for no token.
                result[name] = torch.where(old < 0, old, numbers.to(old.device)[old.clamp(min=0)])
        return result


def find(model: nn.Module) -> Vocabulary:
    """The parts of `model`, which may be on the meta device, that have an entry for each token.

    Raises:
        CookError: when it reads no tokens, or keeps them in a way that cook does not know.
    """
    whole: Any = model
    kind = type(model).__name__
    try:
        embedding = whole.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Embedding):
        raise CookError(f"a {kind} has no word embedding", hint="this pass is for models that read text")
    entries = embedding.num_embeddings
    if (said := getattr(_text_config(model), "vocab_size", None)) != entries:
        raise CookError(f"{kind} embeds {entries:,} tokens, and its config's vocab_size is {said}")
    shared = {id(embedding.weight)}
    if getattr(whole.config, "is_encoder_decoder", False):
        shared.add(id(getattr(whole.get_decoder().get_input_embeddings(), "weight", None)))
    modules = dict(model.named_modules())
    embeddings = [
        name for name, each in modules.items() if isinstance(each, nn.Embedding) and id(each.weight) in shared
    ]
    head = whole.get_output_embeddings()
    if head is not None and not (linear.is_linear(head) and not linear.is_transposed(head)):
        raise CookError(f"{kind} gives its tokens by a {type(head).__name__}, which cook cannot cut")
    if head is not None and linear.shape(head)[0] != entries:
        raise CookError(f"{kind} reads {entries:,} tokens and gives {linear.shape(head)[0]:,}")
    heads = [name for name, each in modules.items() if each is head]
    return Vocabulary(entries, embeddings, heads, _vectors(model, entries, [*embeddings, *heads]))


def cut(model: nn.Module, vocabulary: Vocabulary, renumbering: Renumbering) -> list[str]:
    """Keep the rows of some tokens only; ties stay, and the configs say the new numbers.

    Args:
        vocabulary: what `find` gave for this model.

    Returns:
        The names of the parameters that lost rows, one for each that is tied.
    """
    kept = renumbering.kept
    former = dict(model.named_parameters(remove_duplicate=False))
    for name in vocabulary.embeddings:
        surgery.select(surgery.get(model, name), in_=kept)
    for name in vocabulary.heads:
        surgery.select(surgery.get(model, name), out=kept)
    for name in vocabulary.vectors:
        owner, key = _owner(model, name)
        old = getattr(owner, key)
        setattr(owner, key, surgery.take(old, *[None] * (old.ndim - 1), kept))
    lost: dict[int, tuple[str, nn.Parameter]] = {}
    for name, old in former.items():
        if (now := model.get_parameter(name)) is not old:
            lost.setdefault(id(old), (name, now))
    for name, old in former.items():
        if id(old) in lost:
            owner, key = _owner(model, name)
            setattr(owner, key, lost[id(old)][1])
    _say(model, renumbering)
    return [name for name, _ in lost.values()]


def named_ids(model: nn.Module) -> set[int]:
    """The tokens that the configs of a model name: padding, ends, where a decoder starts."""
    limit = _text_config(model).vocab_size
    lists = [value for config in _configs(model) for value in _numbers(config).values()]
    flat = {number for value in lists for number in _flat(value)}
    return {number for number in flat if 0 <= number < limit}


def check_padding(model: nn.Module, renumbering: Renumbering) -> None:
    """Refuse a model that counts positions from the number of its padding token, if that would change.

    RoBERTa does: its first position is the padding token's number plus one.
    """
    for name, module in model.named_modules():
        number = getattr(module, "padding_idx", None)
        if isinstance(number, int) and hasattr(module, "position_embeddings"):
            now = int(renumbering.new[number])
            if now != number:
                message = f"{name} counts positions from the padding token's number: {number} becomes {now}"
                raise CookError(message, hint="keep all tokens before the padding token")


def _vectors(model: nn.Module, entries: int, known: list[str]) -> list[str]:
    """Biases of the vocabulary outside of the known modules.

    Raises:
        CookError: when something else has as many entries as there are tokens.
    """
    config = _text_config(model)
    others = {value for key, value in vars(config).items() if type(value) is int and key != "vocab_size"}
    inside = {name for module in known for name in _tensors(model.get_submodule(module), module)}
    same = {id(tensor) for name, tensor in _tensors(model).items() if name in inside}
    found = []
    for name, tensor in _tensors(model).items():
        if id(tensor) in same or entries not in tensor.shape:
            continue
        vector = tensor.shape[-1] == tensor.numel() and "bias" in name.rpartition(".")[2]
        # A tiny model can have as many tokens as its layers are wide: then only names can tell.
        if vector and (entries not in others or name.rpartition(".")[2] == "final_logits_bias"):
            found.append(name)
        elif entries not in others:
            message = f"{name} has {entries:,} entries, one for each token, and cook does not know it"
            raise CookError(message)
    return found


def _tensors(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = dict(module.named_parameters(prefix, remove_duplicate=False))
    return {**found, **dict(module.named_buffers(prefix, remove_duplicate=False))}


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    module, _, key = name.rpartition(".")
    return surgery.get(model, module) if module else model, key


def _say(model: nn.Module, renumbering: Renumbering) -> None:
    """Write sizes and numbers into the configs, and into the modules that keep a copy of them."""
    size = len(renumbering.kept)
    for config in _configs(model):
        for key, value in _numbers(config).items():
            setattr(config, key, _mapped(value, renumbering))
        if getattr(config, "vocab_size", None) == renumbering.entries:
            config.vocab_size = size
    for module in model.modules():
        held: Any = module
        if getattr(module, "vocab_size", None) == renumbering.entries:
            held.vocab_size = size
        if isinstance(getattr(module, "padding_idx", None), int) and not isinstance(module, nn.Embedding):
            held.padding_idx = _mapped(held.padding_idx, renumbering)


def _configs(model: nn.Module) -> list[Any]:
    """Every config in a model once: parts may have copies, and a config may hold that of the text part."""
    found: dict[int, Any] = {}
    for module in model.modules():
        for name in ("config", "generation_config"):
            config = getattr(module, name, None)
            if hasattr(config, "to_dict"):
                found[id(config)] = config
                if isinstance(config, PreTrainedConfig):
                    inner = config.get_text_config()
                    found[id(inner)] = inner
    return list(found.values())


def _text_config(model: nn.Module) -> Any:
    whole: Any = model
    return whole.config.get_text_config()


def _numbers(config: Any) -> dict[str, Any]:
    """The token numbers that a config names, by key."""
    return {
        key: value
        for key, value in vars(config).items()
        if value is not None and (key.endswith(("token_id", "token_ids")) or key in LISTS)
    }


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    elif isinstance(value, int):
        yield value


def _mapped(value: Any, renumbering: Renumbering) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(each, renumbering) for each in value)
    if isinstance(value, int) and 0 <= value < renumbering.entries:
        return int(renumbering.new[value])
    return value
