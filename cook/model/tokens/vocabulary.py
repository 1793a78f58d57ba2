"""The per-token rows of a model, and their removal.

Rows are found by identity (the input and output embeddings according to transformers, and modules that share
their parameters) and by their number; other tensors with as many entries are refused. The result is
described by `vocab_size` in the config alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cook.errors import CookError
from cook.model.nn import linear, surgery
from cook.model.nn.embedding import within, word_embedding
from cook.model.tokens.id_map import TokenIdMap, text_config, write


@dataclass(frozen=True)
class Vocabulary:
    """The parts of a model that have an entry per token, by name.

    Attributes:
        entries: number of tokens.
        embeddings: modules; their rows are entries.
        heads: linear layers; their outputs are entries.
        vectors: other parameters and buffers, [entries] or [1, entries].
    """

    entries: int
    embeddings: list[str]
    heads: list[str]
    vectors: list[str]


def find(model: nn.Module) -> Vocabulary:
    """The parts of `model`, which may be on the meta device, that have an entry per token.

    Raises:
        CookError: the model reads no tokens, or stores them in a way that cook does not support.
    """
    whole: Any = model
    kind = type(model).__name__
    embedding: Any = within(word_embedding(model))
    entries = embedding.num_embeddings
    if (said := getattr(text_config(model), "vocab_size", None)) != entries:
        raise CookError(f"{kind} embeds {entries:,} tokens, and its config's vocab_size is {said}")
    shared = {id(embedding.weight)}
    if getattr(whole.config, "is_encoder_decoder", False):
        shared.add(id(getattr(within(whole.get_decoder().get_input_embeddings()), "weight", None)))
    modules = dict(model.named_modules())
    embeddings = [
        name for name, each in modules.items() if isinstance(each, nn.Embedding) and id(each.weight) in shared
    ]
    head = within(whole.get_output_embeddings())
    if head is not None and not (linear.is_linear(head) and not linear.is_transposed(head)):
        raise CookError(f"{kind} gives its tokens by a {type(head).__name__}, which cook cannot cut")
    if head is not None and linear.shape(head)[0] != entries:
        raise CookError(f"{kind} reads {entries:,} tokens and gives {linear.shape(head)[0]:,}")
    heads = [name for name, each in modules.items() if each is head]
    return Vocabulary(entries, embeddings, heads, _vectors(model, entries, [*embeddings, *heads]))


def cut(model: nn.Module, vocabulary: Vocabulary, token_id_map: TokenIdMap) -> list[str]:
    """Keep only the rows of the tokens kept; ties are kept, and the configs get the new ids.

    Args:
        vocabulary: the result of `find` for this model.

    Returns:
        The names of the parameters that lost rows, one name for each tied one.
    """
    kept = token_id_map.kept
    with surgery.tied(model) as lost:
        for name in vocabulary.embeddings:
            embedding: Any = surgery.get(model, name)
            if embedding.padding_idx is not None:
                embedding.padding_idx = int(token_id_map.new[embedding.padding_idx])
            surgery.select(embedding, in_=kept)
        for name in vocabulary.heads:
            surgery.select(surgery.get(model, name), out=kept)
        for name in vocabulary.vectors:
            owner, key = _owner(model, name)
            old = getattr(owner, key)
            left = old.detach().index_select(-1, kept.to(old.device))
            parameter = isinstance(old, nn.Parameter)
            setattr(owner, key, nn.Parameter(left, requires_grad=old.requires_grad) if parameter else left)
    write(model, token_id_map)
    return [name for name, _ in lost.values()]


def _vectors(model: nn.Module, entries: int, known: list[str]) -> list[str]:
    """Biases of the vocabulary outside of the known modules.

    Raises:
        CookError: another tensor has as many entries as there are tokens.
    """
    config = text_config(model)
    others = {value for key, value in vars(config).items() if type(value) is int and key != "vocab_size"}
    inside = {name for module in known for name in _tensors(model.get_submodule(module), module)}
    same = {id(tensor) for name, tensor in _tensors(model).items() if name in inside}
    found = []
    for name, tensor in _tensors(model).items():
        if id(tensor) in same or entries not in tensor.shape:
            continue
        vector = tensor.shape[-1] == tensor.numel() and "bias" in name.rpartition(".")[2]
        # In a tiny model the vocabulary may be as large as a layer's width: then only names can tell.
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
