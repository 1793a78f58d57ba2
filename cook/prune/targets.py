"""Which matrices `prune.weights` acts on, and whether its options fit their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cook.model.anatomy import Anatomy
from cook.model.linear import is_linear, matrix
from cook.model.targets import select, within
from cook.passes import Pass
from cook.prune.options import MOVING, block_sizes, pattern_sizes

EMBEDDED = ("magnitude",)
"""Methods that prune embeddings too; the others need inputs, or a layer that a mask can stand in."""


def has_matrix(module: nn.Module) -> bool:
    """Linear layers and embeddings: what has a weight matrix to prune."""
    return is_linear(module) or isinstance(module, nn.Embedding)


def rows(module: Any) -> Tensor:
    """The weight [out, in] of a linear layer, or of an embedding, whose rows feed what comes after."""
    weight: Tensor = matrix(module) if is_linear(module) else module.weight
    return weight


def targets(owner: Pass, anatomy: Anatomy, *, inside: bool = False, alone: bool = False) -> list[str]:
    """The modules to prune; a matrix that is tied under two names is there once.

    Args:
        owner: whose options count, and whom errors point at.
        inside: whether all have to lie inside of the model's layers.
        alone: whether no matrix may be tied to another module's.

    Raises:
        CookError: nothing matches, or a matrix does not fit the options.
    """
    given = owner.given
    embedded = given["method"] in EMBEDDED
    kind, what = (has_matrix, "linear layer or embedding") if embedded else (is_linear, "linear layer")
    named: dict[int, str] = {}
    for name in select(anatomy, given["include"], given["exclude"], kind=kind, what=what):
        named.setdefault(id(anatomy.model.get_submodule(name).weight), name)
    found = list(named.values())
    if inside:
        _check_inside(owner, anatomy, found)
    if inside or alone:
        _check_alone(owner, anatomy, found)
    shapes = {name: tuple(rows(anatomy.model.get_submodule(name)).shape) for name in found}
    if given["pattern"]:
        _check_sizes(owner, "pattern", shapes, (1, pattern_sizes(given["pattern"])[1]))
    if given["block"]:
        _check_sizes(owner, "block", shapes, block_sizes(given["block"]))
    return found


def _check_sizes(
    owner: Pass, option: str, shapes: Mapping[str, tuple[int, ...]], unit: tuple[int, int]
) -> None:
    for axis, kind in ((1, "inputs"), (0, "outputs")):
        uneven = [name for name, shape in shapes.items() if shape[axis] % unit[axis]]
        if uneven:
            size = shapes[uneven[0]][axis]
            message = f"{uneven[0]} has {size} {kind}, which is no multiple of {unit[axis]}"
            raise owner.error(message + _others(uneven), option=option, hint=_without(uneven))


def _check_inside(owner: Pass, anatomy: Anatomy, names: list[str]) -> None:
    method = owner.given["method"]
    if anatomy.family is None:
        message = f"method {method} goes layer by layer, and cook knows no layers of a {anatomy.kind!r} model"
        raise owner.error(message, option="method", hint="method: magnitude looks at weights alone")
    within_layers = set(within(names, anatomy.layers))
    if outside := [name for name in names if name not in within_layers]:
        message = f"{outside[0]} lies outside of the layers, which {method} goes through one by one"
        raise owner.error(message + _others(outside), option="include", hint=_without(outside))


def _check_alone(owner: Pass, anatomy: Anatomy, names: list[str]) -> None:
    holders: dict[int, list[str]] = {}
    for name, module in anatomy.model.named_modules():
        if has_matrix(module):
            holders.setdefault(id(module.weight), []).append(name)
    for name in names:
        shared = holders[id(anatomy.model.get_submodule(name).weight)]
        if len(shared) > 1:
            other = next(each for each in shared if each != name)
            method = owner.given["method"]
            reason = "a soft mask would not reach" if method in MOVING else f"{method} sees no inputs of"
            message = f"the weight of {name} is that of {other} too, which {reason}"
            hint = f"method: magnitude looks at weights alone; or leave out: exclude: [{name}, {other}]"
            raise owner.error(message, option="include", hint=hint)


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _without(names: list[str]) -> str:
    shown = ", ".join([*names[:3], "..."] if len(names) > 3 else names)
    return f"leave out: exclude: [{shown}]"
