"""The only code that replaces, resizes or cuts modules; the caller records each edit in the Blueprint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError, nearest
from cook.model import linear


def get(model: nn.Module, name: str) -> nn.Module:
    """The module called `name`.

    Raises:
        CookError: with the nearest name when there is none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        hint = nearest(name, dict(model.named_modules(remove_duplicate=False)))
        raise CookError(f"{type(model).__name__} has no module {name!r}", hint=hint) from None


def replace(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put `new` where `name` was and return the old module.

    Raises:
        CookError: when there is no such module, or `name` is the model itself.
    """
    old = get(model, name)
    parent, _, child = name.rpartition(".")
    if not child:
        raise CookError("the model itself cannot be replaced")
    setattr(model.get_submodule(parent), child, new)
    return old


def resize(module: nn.Module, out: int, in_: int) -> None:
    """Give a module other sizes, in place; what fits is kept, what is new is zero.

    Args:
        module: nn.Linear, Conv1D, nn.Embedding, or a norm with a weight [width].
        out: rows of the matrix; the width of an embedding or a norm.
        in_: columns of the matrix; the entries of an embedding; the width of a norm.

    Raises:
        CookError: for any other module, or a norm whose sizes differ.
    """
    sizes: Any = module
    kind = type(module).__name__
    if getattr(module, "packed", False):
        raise CookError(f"{kind} holds packed integers and cannot be resized", hint="slice it instead")
    if linear.is_linear(module):
        _fit(module, "weight", (in_, out) if linear.is_transposed(module) else (out, in_))
        _fit(module, "bias", (out,))
        if linear.is_conv1d(module):
            sizes.nf, sizes.nx = out, in_
        else:
            sizes.out_features, sizes.in_features = out, in_
    elif isinstance(module, nn.Embedding):
        _fit(module, "weight", (in_, out))
        sizes.num_embeddings, sizes.embedding_dim = in_, out
    elif "Norm" in kind and isinstance(getattr(module, "weight", None), Tensor) and sizes.weight.ndim == 1:
        if out != in_:
            raise CookError(f"a norm has one width, not {in_} and {out}")
        _fit(module, "weight", (out,))
        _fit(module, "bias", (out,))
        if isinstance(module, nn.LayerNorm):
            sizes.normalized_shape = (out,)
    else:
        message = f"{kind} cannot be resized: it is no linear layer, embedding or norm"
        raise CookError(message)


def select(module: nn.Module, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
    """Keep some rows or columns of a module, in place; what is kept has its value, dtype and device.

    Args:
        module: a linear layer of any kind that is not packed, or nn.Embedding.
        out: which rows of the matrix, and so which biases; which columns of an embedding's width. Indices
            [kept], in the order that they will have; None keeps all.
        in_: which columns of the matrix; which entries of an embedding.

    Raises:
        CookError: for any other module, or when an embedding's padding entry would leave.
    """
    sizes: Any = module
    kind = type(module).__name__
    if getattr(module, "packed", False):
        raise CookError(f"{kind} holds packed integers and cannot be cut", hint="cut it before it is rounded")
    if linear.is_linear(module):
        first, second = (in_, out) if linear.is_transposed(module) else (out, in_)
        _take(module, "weight", first, second)
        _take(module, "bias", out)
        rows, columns = linear.shape(module)
        if linear.is_conv1d(module):
            sizes.nf, sizes.nx = rows, columns
        else:
            sizes.out_features, sizes.in_features = rows, columns
        if hasattr(module, "select_inner"):
            sizes.select_inner(out, in_)
    elif isinstance(module, nn.Embedding):
        if in_ is not None and module.padding_idx is not None:
            place = (in_ == module.padding_idx).nonzero().flatten().tolist()
            if not place:
                raise CookError(f"the padding entry {module.padding_idx} of an embedding has to stay")
            module.padding_idx = place[0]
        _take(module, "weight", in_, out)
        sizes.num_embeddings, sizes.embedding_dim = module.weight.shape
    else:
        raise CookError(f"{kind} cannot be cut: it is no linear layer or embedding")


def take(tensor: Tensor, *indices: Tensor | None) -> Tensor:
    """The entries of a tensor at `indices`, one [kept] a dimension; None keeps all. A Parameter stays one."""
    kept = tensor.detach()
    for dimension, index in enumerate(indices):
        if index is not None:
            kept = kept.index_select(dimension, index.to(kept.device))
    parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(kept, requires_grad=tensor.requires_grad) if parameter else kept


def _take(module: nn.Module, name: str, *indices: Tensor | None) -> None:
    if isinstance(old := getattr(module, name, None), Tensor):
        setattr(module, name, take(old, *indices))


def _fit(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    old = getattr(module, name, None)
    if old is None or tuple(old.shape) == shape:
        return
    new = torch.zeros(shape, dtype=old.dtype, device=old.device)
    if not old.is_meta:
        overlap = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, shape, strict=True))
        new[overlap] = old.detach()[overlap]
    setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
