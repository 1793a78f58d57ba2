"""Which matrices `prune.weights` acts on, and whether its options fit their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cook.model.arch.anatomy import Anatomy
from cook.model.arch.targets import select, within
from cook.model.nn.linear import is_linear, is_transposed, matrix
from cook.passes import Pass
from cook.prune.specs.options import MOVING, block_sizes, pattern_sizes

EMBEDDED = ("magnitude",)
"""Methods that prune embeddings too; the others need inputs, or a layer that a mask can stand in."""


def has_matrix(module: nn.Module) -> bool:
    """Linear layers and embeddings: what has a weight matrix to prune."""
    return is_linear(module) or isinstance(module, nn.Embedding)


def stacks(anatomy: Anatomy, module: nn.Module) -> list[str]:
    """The parameters of a module that hold a matrix for each expert of a mixture: [experts, ., .].

    The config says how many experts there are; other tensors of three dimensions are none.
    """
    counts = _expert_counts(getattr(anatomy.model, "config", None))
    own = module.named_parameters(recurse=False)
    return [name for name, each in own if each.ndim == 3 and each.shape[0] in counts]


def _expert_counts(config: Any) -> set[int]:
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    parts = [values, *(part for part in values.values() if isinstance(part, dict))]
    return {
        value
        for part in parts
        for key, value in part.items()
        if "expert" in str(key) and type(value) is int and value > 1
    }


def rows(model: nn.Module, parameter: str) -> Tensor:
    """The weight [out, in] of a linear layer, of an embedding, or of all experts one after the other.

    Args:
        parameter: its full name. Experts [n, a, b] are given as [n * a, b].
    """
    module, _, name = parameter.rpartition(".")
    owner: Any = model.get_submodule(module)
    if name == "weight" and is_linear(owner):
        return matrix(owner)
    value: Tensor = getattr(owner, name)
    return value.flatten(0, -2)


def own_shape(model: nn.Module, parameter: str, keep: Tensor) -> Tensor:
    """A mask over `rows` in the shape of the parameter itself."""
    owner = model.get_submodule(parameter.rpartition(".")[0])
    if has_matrix(owner):
        return keep.t().contiguous() if is_transposed(owner) else keep
    return keep.view(model.get_parameter(parameter).shape)


def targets(owner: Pass, anatomy: Anatomy, *, inside: bool = False, alone: bool = False) -> list[str]:
    """The parameters to prune; a matrix that is tied under two names is there once.

    Args:
        owner: the pass, for its options and its errors.
        inside: whether all have to lie inside of the model's layers.
        alone: whether no matrix may be tied to another module's, since a soft mask will stand in for each.

    Returns:
        Full names of parameters. Experts are among them where their orientation does not matter: by
        magnitude, without a pattern and without blocks.

    Raises:
        CookError: nothing matches, or a matrix does not fit the options.
    """
    options, model = owner.options, anatomy.model
    embedded = options.method in EMBEDDED
    stacked = embedded and not options.pattern and not options.block

    def kind(module: nn.Module) -> bool:
        if stacked and stacks(anatomy, module):
            return True
        return has_matrix(module) if embedded else is_linear(module)

    what = "linear layer or embedding" if embedded else "linear layer"
    named: dict[int, str] = {}
    for name in select(
        anatomy, options.include, options.exclude, kind=kind, what=what, replaced=not embedded
    ):
        module = model.get_submodule(name)
        for key in ["weight"] if has_matrix(module) else stacks(anatomy, module):
            named.setdefault(id(getattr(module, key)), f"{name}.{key}")
    found = list(named.values())
    modules = [name.rpartition(".")[0] for name in found]
    if inside:
        _check_inside(owner, anatomy, modules)
    if inside or alone:
        _check_alone(owner, anatomy, modules)
    shapes = {module: tuple(rows(model, name).shape) for module, name in zip(modules, found, strict=True)}
    if options.pattern:
        _check_sizes(owner, "pattern", shapes, (1, pattern_sizes(options.pattern)[1]))
    if options.block:
        _check_sizes(owner, "block", shapes, block_sizes(options.block))
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
    method = owner.options.method
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
            method = owner.options.method
            reason = "a soft mask would not reach" if method in MOVING else f"{method} sees no inputs of"
            message = f"the weight of {name} is that of {other} too, which {reason}"
            hint = f"method: magnitude looks at weights alone; or leave out: exclude: [{name}, {other}]"
            raise owner.error(message, option="include", hint=hint)


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _without(names: list[str]) -> str:
    shown = ", ".join([*names[:3], "..."] if len(names) > 3 else names)
    return f"leave out: exclude: [{shown}]"
