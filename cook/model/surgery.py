"""The only code that replaces or resizes modules; the caller records each edit in the Blueprint."""

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


@torch.no_grad()
def select(module: nn.Module, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
    """Keep some rows and columns of a module, in place.

    Args:
        module: nn.Linear, Conv1D, nn.Embedding, or a stand-in of cook that can `select` by itself.
        out: numbers of the rows of the matrix to keep, in order; of an embedding, of its width. None: all.
        in_: numbers of its columns; of an embedding, of its entries.

    Raises:
        CookError: for any other module.
    """
    if callable(own := getattr(module, "select", None)):
        own(out=out, in_=in_)
        return
    flipped = linear.is_transposed(module) or isinstance(module, nn.Embedding)
    if (not flipped and not linear.is_linear(module)) or getattr(module, "packed", False):
        raise CookError(f"{type(module).__name__} cannot lose rows or columns: it is no float matrix")
    weight: Any = module.weight
    learns = weight.requires_grad
    for axis, index in ((1, out), (0, in_)) if flipped else ((0, out), (1, in_)):
        if index is not None:
            weight = weight.index_select(axis, index.to(weight.device))
    bias: Any = getattr(module, "bias", None)
    if bias is not None and out is not None:
        module.bias = nn.Parameter(bias[out.to(bias.device)], requires_grad=bias.requires_grad)
    module.weight = nn.Parameter(weight, requires_grad=learns)
    rows, columns = weight.shape[::-1] if flipped else weight.shape
    resize(module, rows, columns)


def _fit(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    old = getattr(module, name, None)
    if old is None or tuple(old.shape) == shape:
        return
    new = torch.zeros(shape, dtype=old.dtype, device=old.device)
    if not old.is_meta:
        overlap = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, shape, strict=True))
        new[overlap] = old.detach()[overlap]
    setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
