"""Parameter sharing between distinct modules: a decoder's cache distinguishes layers by their modules.

A `share` edit names the module whose parameters another one takes. transformers writes a shared tensor once
and ties it again only if declared: on saving by `_tied_weights_keys`, which are set on the modules here and
so survive every renaming; on loading by the model's `all_tied_weights_keys`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from cook.errors import CookError
from cook.model.nn import linear, surgery

OWN = ("input_scale",)
"""Parameters that modules never share, because each module's values are its own."""


def own(module: nn.Module) -> dict[str, nn.Parameter]:
    """The shareable parameters held directly by a module, by name."""
    return {name: each for name, each in module.named_parameters(recurse=False) if name not in OWN}


def share(model: nn.Module, name: str, of: str) -> None:
    """Make module `name` use the parameters of module `of`, dropping its own.

    Raises:
        CookError: the parameters of the two differ in names, shapes or dtypes.
    """
    module, source = surgery.get(model, name), surgery.get(model, of)
    target, given = own(module), own(source)
    if module is source or not given or _like(target) != _like(given):
        raise CookError(f"{name} and {of} do not hold the same parameters", where="blueprint")
    for key, parameter in given.items():
        setattr(module, key, parameter)
    vars(module)["_tied_weights_keys"] = {key: f"{of}.{key}" for key in given}


def pairs(model: nn.Module, names: Iterable[str]) -> list[tuple[str, str]]:
    """The modules that share all parameters of an earlier one, as pairs (module, first such module).

    Excludes modules that read the matrix transposed: their integers would be quantised along the other axis.
    """
    first: dict[tuple[int, ...], str] = {}
    found = []
    for name in names:
        module = surgery.get(model, name)
        if key := tuple(id(each) for each in own(module).values()):
            of = first.setdefault((linear.is_transposed(module), *key), name)
            if of != name:
                found.append((name, of))
    return found


def torn(model: nn.Module, shared: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The first of these pairs whose shareable parameters are not all shared in the model now."""
    for name, of in shared:
        if not (surgery.has(model, name) and surgery.has(model, of)):
            return name, of
        one, other = _held(surgery.get(model, name)), _held(surgery.get(model, of))
        if not one or one != other:
            return name, of
    return None


def check(model: nn.Module, shared: Iterable[tuple[str, str]]) -> None:
    """Raise CookError unless all of these pairs share all parameters they can."""
    if pair := torn(model, shared):
        raise CookError(
            f"{pair[0]} and {pair[1]} share their parameters, and only one of them would be changed, or each"
            " in its own way",
            hint="name both or neither; what gives layers other modules goes before share.layers",
        )


def check_stay(shared: Iterable[tuple[str, str]], layers: Sequence[str], gone: Collection[str]) -> None:
    """Raise CookError if a layer that is to be removed shares parameters with others.

    Args:
        layers: names of the model's layers, first to last, for the layer numbers in the message.
    """
    named = [f"{name}." for pair in shared for name in pair]
    bound = {layer for layer in gone if any(name.startswith(f"{layer}.") for name in named)}
    if numbers := [str(number) for number, layer in enumerate(layers) if layer in bound]:
        raise CookError(
            f"would leave out layers that share parameters with others: {', '.join(numbers)}",
            hint="leave layers out before they share: prune.layers above share.layers, or student.layers",
        )


def ties(model: nn.Module, shared: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Maps each parameter that is an alias to the parameter it aliases, as transformers expects."""
    found: dict[str, str] = {}
    for name, of in shared:
        for key in own(surgery.get(model, name)):
            target, source = f"{name}.{key}", f"{of}.{key}"
            while source in found:
                source = found[source]
            if target != source:
                found[target] = source
    return found


def declare(model: Any, shared: Sequence[tuple[str, str]]) -> None:
    """Declare the ties of a model to transformers, replacing earlier declarations."""
    told: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    held = dict(model.named_parameters(remove_duplicate=False))
    kept = {
        target: source
        for target, source in told.items()
        if target in held and held[target] is held.get(source)
    }
    if told or shared:
        model.all_tied_weights_keys = {**kept, **ties(model, shared)}


def keep_bias(*_: object) -> None:
    """Replaces `_adjust_bias` while shared parameters are loaded, which would cut the bias of a Conv1D to the
    first axis of its weight, its input width."""


def _like(parameters: Mapping[str, nn.Parameter]) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(each.shape), each.dtype) for name, each in parameters.items()}


def _held(module: nn.Module) -> dict[str, int]:
    """The shareable parameters of a module, including those inside a composite."""
    named = own(module) or dict(module.named_parameters(remove_duplicate=False))
    return {name: id(each) for name, each in named.items()}
