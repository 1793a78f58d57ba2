"""The only code that replaces or resizes modules; the caller records each edit in the Blueprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError, nearest
from cook.model.nn import linear


def get(model: nn.Module, name: str) -> nn.Module:
    """The module called `name`.

    Raises:
        CookError: there is none; the message names the nearest one.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        hint = nearest(name, dict(model.named_modules(remove_duplicate=False)))
        raise CookError(f"{type(model).__name__} has no module {name!r}", hint=hint) from None


def has(model: nn.Module, name: str) -> bool:
    """Whether there is a module called `name`."""
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def replace(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Replace module `name` by `new` and return the old module.

    Raises:
        CookError: there is no such module, or `name` is the model itself.
    """
    old = get(model, name)
    parent, _, child = name.rpartition(".")
    if not child:
        raise CookError("the model itself cannot be replaced")
    setattr(model.get_submodule(parent), child, new)
    return old


def resize(module: nn.Module, out: int, in_: int) -> None:
    """Resize a module in place; overlapping entries are kept, new ones are zero.

    Args:
        module: nn.Linear, Conv1D, nn.Embedding, an ungrouped nn.Conv2d, or one of `is_vectors`.
        out: rows of the matrix; output channels; the width of an embedding or of vectors.
        in_: columns of the matrix; input channels; the entries of an embedding; the width of vectors.

    Raises:
        CookError: any other module, or vectors whose sizes differ.
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
    elif is_channels(module):
        _fit(module, "weight", (out, in_, *sizes.kernel_size))
        _fit(module, "bias", (out,))
        sizes.out_channels, sizes.in_channels = out, in_
    elif is_vectors(module):
        if out != in_:
            raise CookError(f"a {kind} has one width, not {in_} and {out}")
        for name, vector in list(module.named_parameters(recurse=False)):
            _fit(module, name, (*vector.shape[:-1], out))
        if isinstance(module, nn.LayerNorm):
            sizes.normalized_shape = (out,)
    else:
        message = f"{kind} cannot be resized: it is no linear layer, embedding or norm"
        raise CookError(message)


@torch.no_grad()
def select(module: nn.Module, *, out: Tensor | None = None, in_: Tensor | None = None) -> None:
    """Keep the given rows and columns of a module, in place.

    Args:
        module: any that `resize` takes, or a replacement of cook with its own `select`.
        out: indices of the rows of the matrix to keep, in order; of an embedding or of vectors, of their
            width. None: all.
        in_: indices of its columns; of an embedding, of its entries; not for vectors.

    Raises:
        CookError: any other module.
    """
    if callable(own := getattr(module, "select", None)):
        own(out=out, in_=in_)
        return
    if is_vectors(module) and out is not None and in_ is None:
        for name, vector in list(module.named_parameters(recurse=False)):
            left = vector.index_select(-1, out.to(vector.device))
            setattr(module, name, nn.Parameter(left, requires_grad=vector.requires_grad))
        resize(module, len(out), len(out))
        return
    flipped = linear.is_transposed(module) or isinstance(module, nn.Embedding)
    known = flipped or linear.is_linear(module) or is_channels(module)
    if not known or getattr(module, "packed", False):
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
    rows, columns = weight.shape[::-1] if flipped else weight.shape[:2]
    resize(module, rows, columns)


def is_channels(module: nn.Module) -> bool:
    """Whether a module is an ungrouped convolution, whose weight is a matrix of kernels."""
    return isinstance(module, nn.Conv2d) and module.groups == 1


def is_vectors(module: nn.Module) -> bool:
    """Whether a module holds only vectors of one width: a norm with a weight [width], or
    parameters [1, n, width] that are added to states (ViT's positions)."""
    own = dict(module.named_parameters(recurse=False))
    if len({each.shape[-1] for each in own.values() if each.ndim}) != 1:
        return False
    if "Norm" in type(module).__name__:
        return "weight" in own and all(each.ndim == 1 for each in own.values())
    return all(each.ndim == 3 and len(each) == 1 for each in own.values())


@contextmanager
def tied(model: nn.Module) -> Iterator[dict[int, tuple[str, nn.Parameter]]]:
    """Preserve parameter sharing: modules that shared a parameter share its first replacement afterwards.

    Yields:
        A dict filled at the end: the replaced parameters, each with one of its names.
    """
    former = dict(model.named_parameters(remove_duplicate=False))
    lost: dict[int, tuple[str, nn.Parameter]] = {}
    yield lost
    for name, old in former.items():
        if (now := model.get_parameter(name)) is not old:
            lost.setdefault(id(old), (name, now))
    for name, old in former.items():
        if id(old) in lost:
            module, _, key = name.rpartition(".")
            setattr(get(model, module) if module else model, key, lost[id(old)][1])


class Changed:
    """A config of which one module sees some values changed; all other accesses go to the config."""

    def __init__(self, config: Any, changes: Mapping[str, int]):
        vars(self).update(_config=config, _changes=dict(changes))

    def __getattr__(self, name: str) -> Any:
        # copy reads such names before any attribute is set.
        if name.startswith("__") or "_config" not in vars(self):
            raise AttributeError(name)
        return self._changes[name] if name in self._changes else getattr(self._config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._config, name, value)

    def whole(self) -> Any:
        """The unchanged config."""
        return self._config


def count(module: nn.Module, name: str) -> int | None:
    """The value of a module's attribute `name`, or of its config for `config.name`; None if absent."""
    owner, _, attribute = name.rpartition(".")
    found = getattr(getattr(module, owner, None) if owner else module, attribute, None)
    return found if type(found) is int else None


def set_count(module: nn.Module, name: str, value: int) -> None:
    """Set a number that `count` finds; one of a config is changed for this module only.

    Raises:
        CookError: there is no such number.
    """
    if count(module, name) is None:
        raise CookError(f"a {type(module).__name__} has no number {name!r}")
    owner, _, attribute = name.rpartition(".")
    if not owner:
        setattr(module, attribute, value)
        return
    whole: Any = module
    config = whole.config
    if isinstance(config, Changed):
        config._changes[attribute] = value
    else:
        whole.config = Changed(config, {attribute: value})


def _fit(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    old = getattr(module, name, None)
    if old is None or tuple(old.shape) == shape:
        return
    new = torch.zeros(shape, dtype=old.dtype, device=old.device)
    if not old.is_meta:
        overlap = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, shape, strict=True))
        new[overlap] = old.detach()[overlap]
    setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
