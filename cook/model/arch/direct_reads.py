"""Finds linear layers whose weight is read by the code of an enclosing module, from its source.

Running a model shows this on one machine and in one mode only: Mamba calls `x_proj` on a CPU, and passes
its weight to a kernel on a GPU.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch import nn

READ = ("weight", "bias")
HARMLESS = ("dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "size", "dim", "numel")
"""Attributes and functions of a weight that do not compute with its values."""
ASKING = ("isinstance", "hasattr", "getattr", "type")
APART = ("__init__", "_init", "init_", "reset", "_tie", "tie_", "_load", "load", "convert", "prune", "resize")
"""Name prefixes of functions that construct a model rather than run it."""
OF_ALL = (
    "torch.nn.modules.module",
    "transformers.modeling_utils",
    "transformers.generation",
    "builtins",
    "cook.",
)
"""Modules that define base classes of all models, or layers of cook that replace other layers."""


def read_directly(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The linear layers, among those named, whose weight an enclosing module reads, with that module's class.

    Inspects the source of the classes of the enclosing modules.
    """
    modules = dict(model.named_modules())
    found: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        for end in range(len(parts)):
            around: Any = type(modules[".".join(parts[:end])])
            if any(_meant(tuple(parts[end:]), *read) for read in reads(around)):
                found[name] = around.__name__
    return found


@cache
def reads(kind: type) -> frozenset[tuple[bool, tuple[str, ...]]]:
    """The layers whose weight or bias is read at run time by the code of a class.

    Returns:
        For each whether its name starts at `self`, and the rest of its name: (True, ("out_proj",)).
    """
    found: set[tuple[bool, tuple[str, ...]]] = set()
    for cls in kind.__mro__:
        if not cls.__module__.startswith(OF_ALL):
            found.update(_reads_of(cls))
    return frozenset(found)


def _reads_of(cls: type) -> Iterator[tuple[bool, tuple[str, ...]]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return  # no source: direct reads are then found only by running the model
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and not function.name.startswith(APART):
            harmless = {id(each) for node in ast.walk(function) for each in _only_asked(node)}
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr in READ and id(node) not in harmless:
                    at_self, path = _path(node.value)
                    if path:
                        yield at_self, path


def _only_asked(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions in a node that are used only for their type, shape or presence."""
    if isinstance(node, ast.Attribute) and node.attr in HARMLESS:
        yield node.value
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
        yield from (node.left, *node.comparators)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING:
        yield from node.args
    if isinstance(node, (ast.Assign, ast.Delete)):
        yield from node.targets


def _path(node: ast.AST) -> tuple[bool, tuple[str, ...]]:
    """The attribute path of an expression, and whether it starts at `self`."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return isinstance(node, ast.Name) and node.id == "self", tuple(names)


def _meant(inner: tuple[str, ...], at_self: bool, path: tuple[str, ...]) -> bool:
    return inner == path if at_self else inner[-len(path) :] == path
