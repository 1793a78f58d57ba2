"""Word embeddings of a lower rank: a narrower table, and a factor that widens what it gives.

`h = table[ids] @ factor`, and an output head that shares the table's matrix gives its logits by the same two
factors, the other way round: `logits = (h @ factor^T) @ table^T + bias` (Z. Lan et al., "ALBERT", ICLR 2020,
section 3.1). The table inside is the module that was there, narrowed: its class scales what it gives and
knows the padding token as before.
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
"""What the module that was there is called inside of the one that takes its place."""


class TransposedLinear(nn.Module):
    """A linear layer without a bias whose weight lies as [in, out], so that it can be that of another layer
    which goes the other way.

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
    """Token numbers [...] to vectors [..., width], by a table [entries, rank] and a factor.

    It is no nn.Embedding: what would put a plain one in its place (`resize_token_embeddings`) refuses it.

    Args:
        table: an embedding, of the rank's width.
        weight: of the factor, [width, rank].
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
        """The width of what comes out."""
        return linear.shape(self.factor)[0]

    @property
    def weight(self) -> Tensor:
        """What an embedding of full width would hold, [entries, width]: made at each look, and not a place to
        write to."""
        return _product(self.table.weight, linear.matrix(self.factor).t())


class FactorisedHead(nn.Module):
    """States [..., width] to a number for each token, by the two factors of the embedding that it is tied to.

    Args:
        table: the head, of the rank's width.
        weight: of the embedding's factor, [width, rank].
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
        """What a head of full width would hold, [entries, width]; as that of `FactorisedEmbedding`."""
        return _product(linear.matrix(self.table), linear.matrix(self.factor))


def _product(table: Tensor, factor: Tensor) -> Tensor:
    found = table @ factor
    # T5 initialises what its embedding says to be its weight, whatever was loaded into that.
    found._is_hf_initialized = True  # type: ignore[attr-defined]
    return found


def within(module: nn.Module | None) -> nn.Module | None:
    """What has an entry for each token: the table inside of a factorised module, else the module itself."""
    return module.table if isinstance(module, (FactorisedEmbedding, FactorisedHead)) else module


def widening(model: nn.Module, name: str) -> str:
    """The name of what has the model's width: the factor of a factorised module, else the module itself."""
    there = surgery.has(model, name) and within(surgery.get(model, name)) is not surgery.get(model, name)
    return f"{name}.factor" if there else name


def word_embedding(model: nn.Module) -> Any:
    """What looks up the tokens of `model`: an embedding, or a factorised one.

    Raises:
        CookError: it reads no tokens.
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
        CookError: there is none, it is factorised already, it or a head tied to it does more than look up or
            multiply, encoder and decoder have two, or the model ties it otherwise than its config says.
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
    """The modules that share the matrix of embedding `name`, itself the first, as transformers ties them."""
    pairs = (getattr(model, "all_tied_weights_keys", None) or {}).items()
    found = {f"{name}.weight": None}
    while more := {each: None for pair in pairs if set(pair) & found.keys() for each in pair} - found.keys():
        found.update(dict.fromkeys(sorted(more)))
    return [each.removesuffix(".weight") for each in found]


def factorise(model: nn.Module, name: str, rank: int) -> None:
    """Put two factors in the place of a word embedding and of all that shares its matrix.

    What fits is kept of the table, and the factor is zero: values come afterwards, by `fill` or from a file.
    Ties stay, and the model tells transformers of those between factors.

    Args:
        model: real, or on the meta device.
        name: of the embedding.
        rank: below its width.

    Raises:
        CookError: the module, or one that shares its matrix, is no plain embedding or linear layer, or is not
            wider.
    """
    together = places(model, name)
    for each in together:
        if rank >= (width := _width(each, surgery.get(model, each))):
            raise CookError(f"{each} is {width} wide, a rank of {rank} is not below that")
    first: Any = surgery.get(model, name)
    old = first.weight
    weight = nn.Parameter(old.new_zeros(old.shape[1], rank), requires_grad=old.requires_grad)
    renamed = [(module, _retied(module, prefix, set(together))) for prefix, module in _tying(model)]
    # Where nothing is tied yet, a model that is being loaded, each has a matrix of its own until it is.
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
    """Give the factors of embedding `name` their values, for all that share them.

    Args:
        table: [entries, rank].
        factor: [rank, width].
    """
    embedding: Any = surgery.get(model, name)
    embedding.table.weight.copy_(table)
    embedding.factor.weight.copy_(factor.T)


def _width(name: str, module: Any) -> int:
    """The width of an embedding, or of what a head reads.

    Raises:
        CookError: it does more than an embedding or a linear layer.
    """
    kind = type(module).__name__
    if isinstance(module, nn.Embedding):
        # What it gives has to be rows of its matrix times a number: a norm of them would be another.
        plain = type(module) is nn.Embedding or kind.endswith("ScaledWordEmbedding")
        if plain and module.max_norm is None:
            return module.embedding_dim
    elif isinstance(module, nn.Linear):
        return module.in_features
    raise CookError(f"{name} is a {kind}, which cook cannot factorise")


def _tying(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The models inside of a model, itself among them, that say what is tied, and where each lies."""
    for name, module in model.named_modules():
        if hasattr(module, "all_tied_weights_keys"):
            yield f"{name}." if name else "", module


def _retied(module: Any, prefix: str, together: set[str]) -> dict[str, Mapping[str, str]]:
    """What a model is to say of its ties when these modules, by their names in the whole, have factors."""
    own = module.get_expanded_tied_weights_keys(all_submodels=False)

    def inside(key: str) -> tuple[bool, str, str]:
        path, _, last = key.rpartition(".")
        return prefix + path in together, path, last

    def told(keys: Mapping[str, str]) -> dict[str, str]:
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

    said = {"_tied_weights_keys": own, "all_tied_weights_keys": module.all_tied_weights_keys}
    return {
        name: told(keys)
        for name, keys in said.items()
        if any(inside(key)[0] for key in (*keys, *keys.values()))
    }
