"""Factorised word embeddings: a narrower table followed by a factor that projects to the full width.

`h = table[ids] @ factor`. An output head tied to the table uses the same two factors in reverse order:
`logits = (h @ factor^T) @ table^T + bias` (Z. Lan et al., "ALBERT", ICLR 2020, section 3.1). The inner
table is the original module, narrowed, so that its class still scales its output and handles the padding
token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cook.errors import CookError
from cook.model.nn import linear, surgery

INNER = "table"
"""The name of the original module inside the one that replaces it."""


class TransposedLinear(nn.Module):
    """A linear layer without bias whose weight is stored as [in, out], so that it can share the weight of a
    layer that maps in the opposite direction.

    Args:
        weight: [in, out].
    """

    cook_linear: ClassVar[bool] = True
    transposed: ClassVar[bool] = True

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.in_features, self.out_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", None)

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight.t())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class FactorisedEmbedding(nn.Module):
    """Maps token ids [...] to vectors [..., width] by a table [entries, rank] and a factor.

    Not a subclass of nn.Embedding, so that `resize_token_embeddings` refuses it instead of replacing it.

    Args:
        table: an embedding of width rank.
        weight: the factor's weight, [width, rank].
    """

    def __init__(self, table: nn.Embedding, weight: nn.Parameter):
        super().__init__()
        self.table = table
        self.factor = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.factor.weight = weight
        self.train(table.training)

    def forward(self, ids: Tensor) -> Tensor:
        return self.factor(self.table(ids))

    @property
    def num_embeddings(self) -> int:
        return self.table.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """The width of the output vectors."""
        return linear.shape(self.factor)[0]

    @property
    def weight(self) -> Tensor:
        """The equivalent full-width matrix, [entries, width]; computed on each access, so writing to it has
        no effect."""
        return _product(self.table.weight, linear.matrix(self.factor).t())


class FactorisedHead(nn.Module):
    """Maps states [..., width] to a logit per token by the two factors of the embedding it is tied to.

    Args:
        table: the head, reading vectors of width rank.
        weight: the weight of the embedding's factor, [width, rank].
    """

    def __init__(self, table: nn.Linear, weight: nn.Parameter):
        super().__init__()
        self.factor = TransposedLinear(weight)
        self.table = table
        self.train(table.training)

    def forward(self, states: Tensor) -> Tensor:
        return self.table(self.factor(states))

    @property
    def in_features(self) -> int:
        return linear.shape(self.factor)[1]

    @property
    def out_features(self) -> int:
        return linear.shape(self.table)[0]

    @property
    def bias(self) -> Tensor | None:
        return self.table.bias

    @property
    def weight(self) -> Tensor:
        """The equivalent full-width head matrix, [entries, width]; see `FactorisedEmbedding.weight`."""
        return _product(linear.matrix(self.table), linear.matrix(self.factor))


def _product(table: Tensor, factor: Tensor) -> Tensor:
    found = table @ factor
    # T5 initialises the tensor returned as its embedding's weight, even after loading.
    found._is_hf_initialized = True  # type: ignore[attr-defined]
    return found


def within(module: nn.Module | None) -> nn.Module | None:
    """The module with one entry per token: the table inside a factorised module, else the module itself."""
    return module.table if isinstance(module, (FactorisedEmbedding, FactorisedHead)) else module


def widening(model: nn.Module, name: str) -> str:
    """The name of the module with the model's width: the factor of a factorised module, else the module."""
    there = surgery.has(model, name) and within(surgery.get(model, name)) is not surgery.get(model, name)
    return f"{name}.factor" if there else name


def word_embedding(model: nn.Module) -> Any:
    """The input embedding of `model`: an embedding, or a factorised one.

    Raises:
        CookError: the model reads no tokens.
    """
    whole: Any = model
    try:
        embedding = whole.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(within(embedding), nn.Embedding):
        kind = type(model).__name__
        raise CookError(f"a {kind} has no word embedding", hint="this pass is for models that read text")
    return embedding


def find(model: nn.Module) -> str:
    """The name of the word embedding of `model`, which may be on the meta device, if it can be factorised.

    Raises:
        CookError: the model has no embedding, it is factorised already, it or a tied head does more than a
            lookup or a product, encoder and decoder have separate ones, or the ties contradict the config.
    """
    whole: Any = model
    kind = type(model).__name__
    embedding = word_embedding(model)
    if isinstance(embedding, FactorisedEmbedding):
        rank = embedding.table.embedding_dim
        raise CookError(f"the word embedding of this {kind} has two factors already, of rank {rank}")
    name = next(name for name, module in model.named_modules() if module is embedding)
    together = places(model, name)
    for each in together:
        _width(each, surgery.get(model, each))
    if getattr(whole.config, "is_encoder_decoder", False):
        for part in (whole.get_encoder(), whole.get_decoder()):
            if part is not None and part.get_input_embeddings().weight is not embedding.weight:
                raise CookError(f"encoder and decoder of this {kind} have word embeddings of their own")
    shared = {
        each for each, module in model.named_modules() if getattr(module, "weight", None) is embedding.weight
    }
    if odd := sorted(shared.symmetric_difference(together)):
        said = "shares the matrix of" if odd[0] in shared else "should share the matrix of"
        message = f"{odd[0]} {said} {name}, and the config (tie_word_embeddings) says otherwise"
        raise CookError(message, hint="set tie_word_embeddings to what the model is")
    return name


def places(model: nn.Module, name: str) -> list[str]:
    """The modules that share the matrix of embedding `name`, starting with it, as transformers ties them."""
    pairs = (getattr(model, "all_tied_weights_keys", None) or {}).items()
    found = {f"{name}.weight": None}
    while more := {each: None for pair in pairs if set(pair) & found.keys() for each in pair} - found.keys():
        found.update(dict.fromkeys(sorted(more)))
    return [each.removesuffix(".weight") for each in found]


def factorise(model: nn.Module, name: str, rank: int) -> None:
    """Replace a word embedding and all modules that share its matrix by factorised modules.

    The leading columns of the table are kept and the factor is zero: values are set afterwards, by `fill` or
    from a file. Ties are kept, and the model declares those between factors to transformers.

    Args:
        model: real, or on the meta device.
        name: the embedding's name.
        rank: smaller than the embedding's width.

    Raises:
        CookError: the module, or one that shares its matrix, is not a plain embedding or linear layer, or is
            not wider than `rank`.
    """
    together = places(model, name)
    for each in together:
        if rank >= (width := _width(each, surgery.get(model, each))):
            raise CookError(f"{each} is {width} wide, a rank of {rank} is not below that")
    first: Any = surgery.get(model, name)
    old = first.weight
    weight = nn.Parameter(old.new_zeros(old.shape[1], rank), requires_grad=old.requires_grad)
    renamed = [(module, _retied(module, prefix, set(together))) for prefix, module in _tying(model)]
    # In a model that is being loaded nothing is tied yet, and each module has its own matrix.
    with surgery.tied(model):
        for each in together:
            inner: Any = surgery.get(model, each)
            embeds = isinstance(inner, nn.Embedding)
            entries = len(inner.weight)
            surgery.resize(inner, *((rank, entries) if embeds else (entries, rank)))
    for each in together:
        inner = surgery.get(model, each)
        kind: Any = FactorisedEmbedding if isinstance(inner, nn.Embedding) else FactorisedHead
        surgery.replace(model, each, kind(inner, weight))
    for module, keys in renamed:
        vars(module).update(keys)


@torch.no_grad()
def fill(model: nn.Module, name: str, table: Tensor, factor: Tensor) -> None:
    """Set the factors of embedding `name`, for all modules that share them.

    Args:
        table: [entries, rank].
        factor: [rank, width].
    """
    embedding: Any = surgery.get(model, name)
    embedding.table.weight.copy_(table)
    embedding.factor.weight.copy_(factor.T)


def _width(name: str, module: Any) -> int:
    """The width of an embedding, or the input width of a head.

    Raises:
        CookError: the module does more than an embedding or a linear layer.
    """
    kind = type(module).__name__
    if isinstance(module, nn.Embedding):
        # The output must be rows of the matrix times a constant: max_norm would renormalise the rows.
        plain = type(module) is nn.Embedding or kind.endswith("ScaledWordEmbedding")
        if plain and module.max_norm is None:
            return module.embedding_dim
    elif isinstance(module, nn.Linear):
        return module.in_features
    raise CookError(f"{name} is a {kind}, which cook cannot factorise")


def _tying(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The submodels of a model, itself included, that declare ties, each with its name prefix."""
    for name, module in model.named_modules():
        if hasattr(module, "all_tied_weights_keys"):
            yield f"{name}." if name else "", module


def _retied(module: Any, prefix: str, together: set[str]) -> dict[str, Mapping[str, str]]:
    """The ties that a model has to declare once these modules, by their full names, are factorised."""
    own = module.get_expanded_tied_weights_keys(all_submodels=False)

    def inside(key: str) -> tuple[bool, str, str]:
        path, _, last = key.rpartition(".")
        return prefix + path in together, path, last

    def retied(keys: Mapping[str, str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for pair in keys.items():
            (one, target, key), (other, source, _) = map(inside, pair)
            if one and other:
                found[f"{target}.factor.weight"] = f"{source}.factor.weight"
            if key != "weight" or one == other:
                new = [
                    f"{path}.{INNER}.{last}" if here else f"{path}.{last}"
                    for here, path, last in map(inside, pair)
                ]
                found[new[0]] = new[1]
        return found

    declared = {"_tied_weights_keys": own, "all_tied_weights_keys": module.all_tied_weights_keys}
    return {
        name: retied(keys)
        for name, keys in declared.items()
        if any(inside(key)[0] for key in (*keys, *keys.values()))
    }
