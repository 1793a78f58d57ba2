"""Which linear layers' weights the code of a module around them reads, found in its source.

Running a model shows it on one machine and in one mode only: Mamba calls `x_proj` on a CPU, and hands its
weight to a kernel on a GPU.
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
"""What may be asked of a weight without computing with it."""
ASKING = ("isinstance", "hasattr", "getattr", "type")
APART = ("__init__", "_init", "init_", "reset", "_tie", "tie_", "_load", "load", "convert", "prune", "resize")
"""Functions that begin so make a model, and do not run it."""
OF_ALL = (
    "torch.nn.modules.module",
    "transformers.modeling_utils",
    "transformers.generation",
    "builtins",
    "cook.",
)
"""Modules with the base classes of all models, and with layers of cook, which others may stand in for."""


def read_directly(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Those of some linear layers whose weight is read by the code of a module around them, with its class.

    Looks at the source of the classes around each.
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
    """The layers whose weight or bias the code of a class reads while it runs.

    Returns:
        For each whether its name begins at `self`, and its name from there on: (True, ("out_proj",)).
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
        return  # no source: what runs past a layer is found by running it
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and not function.name.startswith(APART):
            harmless = {id(each) for node in ast.walk(function) for each in _only_asked(node)}
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr in READ and id(node) not in harmless:
                    at_self, path = _path(node.value)
                    if path:
                        yield at_self, path


def _only_asked(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions in a node of which only the kind, the shape or the presence is asked."""
    if isinstance(node, ast.Attribute) and node.attr in HARMLESS:
        yield node.value
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
        yield from (node.left, *node.comparators)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING:
        yield from node.args
    if isinstance(node, (ast.Assign, ast.Delete)):
        yield from node.targets


def _path(node: ast.AST) -> tuple[bool, tuple[str, ...]]:
    """The attributes that lead to an expression, and whether they begin at `self`."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return isinstance(node, ast.Name) and node.id == "self", tuple(names)


def _meant(inner: tuple[str, ...], at_self: bool, path: tuple[str, ...]) -> bool:
    return inner == path if at_self else inner[-len(path) :] == path
