"""Finds linear layers whose weight is read by code other than their own forward.

`nn.MultiheadAttention` never calls its `out_proj`, Mamba multiplies with the weight of `dt_proj`, RWKV
rescales weights in place. Such a weight can be masked, but the layer cannot be replaced, because its
replacement (integers, two factors, a soft mask) would be bypassed. A forward of a small example detects it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from cook.model.arch.direct_reads import read_directly
from cook.model.nn.hooks import Hooks
from cook.model.nn.linear import is_linear
from cook.model.probe.bare import bare
from cook.model.probe.example import FAILURES, Unmeasured, examples
from cook.model.probe.measure import evaluating

VIEWS = ("T", "mT", "H", "mH", "data")
"""Tensor attributes that give access to its values; others (dtype, device, shape) only describe it."""


class _Readers(TorchFunctionMode):
    """Records the parameters passed to functions outside of the forward of their own module."""

    def __init__(self, owners: dict[int, str]):
        super().__init__()
        self.owners = owners
        self.inside: list[str] = []
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        attribute = getattr(getattr(func, "__self__", None), "__name__", None)
        if getattr(func, "__name__", "") != "__get__" or attribute in VIEWS:
            for value in _tensors((*args, *(kwargs or {}).values())):
                name = self.owners.get(id(value))
                if name is not None and name not in self.inside:
                    self.found.add(name)
        return func(*args, **(kwargs or {}))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


@contextmanager
def _entered(model: nn.Module, names: Iterable[str], readers: _Readers) -> Iterator[None]:
    hooks = Hooks()
    try:
        for name in names:
            module = model.get_submodule(name)
            hooks.forward_pre(module, lambda *_, name=name: readers.inside.append(name))
            hooks.forward(module, lambda *_: readers.inside.pop() and None)
        yield
    finally:
        hooks.close()


@torch.no_grad()
def read_elsewhere(model: nn.Module) -> set[str]:
    """The linear layers whose weight or bias is read by other code.

    Args:
        model: also on the meta device. A copy of it without weights runs on a small example in eval mode;
            if its forward fails, the reads recorded before that are returned.

    Returns:
        Full module names.
    """
    if isinstance(model, PreTrainedModel):
        model = bare(model) or model
    linears = {name: module for name, module in model.named_modules() if name and is_linear(module)}
    owners = {
        id(parameter): name
        for name, module in linears.items()
        for parameter in module.parameters(recurse=False)
    }
    # Tied weights belong to several modules: an embedding reads that of a head.
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if owners.get(id(parameter), name) != name:
                del owners[id(parameter)]
    readers = _Readers(owners)
    with suppress(Unmeasured), evaluating(model), _entered(model, linears, readers):
        for example in examples(model):
            readers.inside.clear()
            with suppress(*FAILURES), readers:
                model(**example)
                break
    inside = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    found = readers.found | {name for name in linears if name.rpartition(".")[0] in inside}
    # Code that runs only elsewhere (GPU kernels, training) is found in the source of enclosing modules.
    return found | set(read_directly(model, linears))
