"""Renumbers tokens after others are removed: in batches, in outputs and in a model's configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from cook.errors import CookError

TOKENS = ("input_ids", "decoder_input_ids")
"""Batch keys of token ids."""
LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
"""Generation config keys of token ids that do not end in `token_id`."""


@dataclass(frozen=True)
class TokenIdMap:
    """The tokens to keep: their old ids, in increasing order; new ids are positions in this list.

    Attributes:
        kept: int64 [new entries].
        entries: size of the old vocabulary.
        unknown: the old id of the token that replaces all removed ones.
        labels: whether labels are token ids too, and outputs have an entry per token.
    """

    kept: Tensor
    entries: int
    unknown: int
    labels: bool = False

    @cached_property
    def new(self) -> Tensor:
        """The new id of each token, -1 if it is removed: int64 [entries]."""
        numbers = torch.full((self.entries,), -1, dtype=torch.long)
        numbers[self.kept] = torch.arange(len(self.kept))
        return numbers

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch in new ids, with removed tokens replaced by the unknown token."""
        new = torch.where(self.new < 0, self.new[self.unknown], self.new)
        return self._mapped(batch, new)

    def known(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same batch in old ids: the equivalent input of a model that still has all rows."""
        numbers = torch.arange(self.entries)
        return self._mapped(batch, torch.where(self.new < 0, self.unknown, numbers))

    def outputs(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of a model that still has all rows, without the entries of removed tokens."""
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
                # Negative labels are not token ids.
                result[name] = torch.where(old < 0, old, numbers.to(old.device)[old.clamp(min=0)])
        return result


def named_ids(model: nn.Module) -> set[int]:
    """The token ids in a model's configs and embeddings: padding, end, decoder start."""
    limit = text_config(model).vocab_size
    lists = [value for config in _configs(model) for value in _numbers(config).values()]
    lists += [tokens for config in _configs(model) for tokens, _ in _biases(config)]
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    lists += [each.padding_idx for each in embeddings if each.num_embeddings == limit]
    flat = {number for value in lists for number in _flat(value)}
    return {number for number in flat if 0 <= number < limit}


def check_padding(model: nn.Module, token_id_map: TokenIdMap) -> None:
    """Refuse a model whose positions are offset by its padding token's id, if that id would change.

    RoBERTa is one: its first position is the padding token's id plus one.
    """
    for name, module in model.named_modules():
        number = getattr(module, "padding_idx", None)
        if isinstance(number, int) and hasattr(module, "position_embeddings"):
            now = int(token_id_map.new[number])
            if now != number:
                message = f"{name} counts positions from the padding token's number: {number} becomes {now}"
                raise CookError(message, hint="keep all tokens before the padding token")


def write(model: nn.Module, token_id_map: TokenIdMap) -> None:
    """Write sizes and token ids into the configs, and into modules that keep copies of them."""
    size = len(token_id_map.kept)
    for config in _configs(model):
        for key, value in _numbers(config).items():
            setattr(config, key, _mapped(value, token_id_map))
        if biases := _biases(config):
            config.sequence_bias = [[_mapped(list(tokens), token_id_map), bias] for tokens, bias in biases]
        if getattr(config, "vocab_size", None) == token_id_map.entries:
            config.vocab_size = size
    for module in model.modules():
        held: Any = module
        if getattr(module, "vocab_size", None) == token_id_map.entries:
            held.vocab_size = size
        if isinstance(getattr(module, "padding_idx", None), int) and not isinstance(module, nn.Embedding):
            held.padding_idx = _mapped(held.padding_idx, token_id_map)


def _configs(model: nn.Module) -> list[Any]:
    """Every distinct config in a model: submodules may have copies, and a config may have a text config."""
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


def text_config(model: nn.Module) -> Any:
    """The config, or its text part."""
    whole: Any = model
    return whole.config.get_text_config()


def _numbers(config: Any) -> dict[str, Any]:
    """The token ids in a config, by key."""
    return {
        key: value
        for key, value in vars(config).items()
        if value is not None and (key.endswith(("token_id", "token_ids")) or key in LISTS)
    }


def _biases(config: Any) -> list[tuple[Any, float]]:
    """The sequence biases of a generation config: (token ids, bias)."""
    biases = getattr(config, "sequence_bias", None) or ()
    return [(each[0], each[1]) for each in (biases.items() if isinstance(biases, Mapping) else biases)]


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    elif isinstance(value, int):
        yield value


def _mapped(value: Any, token_id_map: TokenIdMap) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(each, token_id_map) for each in value)
    if isinstance(value, int) and 0 <= value < token_id_map.entries:
        return int(token_id_map.new[value])
    return value
