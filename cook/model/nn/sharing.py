"""Modules that share Parameters and stay apart themselves: a decoder's cache tells layers apart by modules.

A `share` edit says of a module whose parameters it takes. transformers writes a tensor once and ties it again
only where it is told to: when it saves, by `_tied_weights_keys`, which stand at the very modules here and so
follow them through every renaming; when it loads, by `all_tied_weights_keys` of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from cook.errors import CookError
from cook.model.nn import linear, surgery

OWN = ("input_scale",)
"""Parameters that modules never share: what one of them gets is no matter of the others."""


def own(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module itself that it can share, by their names in it."""
    return {name: each for name, each in module.named_parameters(recurse=False) if name not in OWN}


def share(model: nn.Module, name: str, of: str) -> None:
    """Let module `name` have the very parameters of module `of`; its own are given up.

    Raises:
        CookError: the two do not hold parameters of the same names, shapes and types.
    """
    module, source = surgery.get(model, name), surgery.get(model, of)
    target, given = own(module), own(source)
    if module is source or not given or _like(target) != _like(given):
        raise CookError(f"{name} and {of} do not hold the same parameters", where="blueprint")
    for key, parameter in given.items():
        setattr(module, key, parameter)
    vars(module)["_tied_weights_keys"] = {key: f"{of}.{key}" for key in given}


def pairs(model: nn.Module, names: Iterable[str]) -> list[tuple[str, str]]:
    """Those of these modules that have all parameters of an earlier one: (module, the first such) each.

    One that reads a matrix turned round is no such: of its rows it would make integers of their own.
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
    """The first of these pairs that, as they are in the model now, do not share all that they can."""
    for name, of in shared:
        if not (surgery.has(model, name) and surgery.has(model, of)):
            return name, of
        one, other = _held(surgery.get(model, name)), _held(surgery.get(model, of))
        if not one or one != other:
            return name, of
    return None


def check(model: nn.Module, shared: Iterable[tuple[str, str]]) -> None:
    """Raise CookError unless all of these pairs share what they can."""
    if pair := torn(model, shared):
        raise CookError(
            f"{pair[0]} and {pair[1]} share their parameters, and only one of them would be changed, or each"
            " in its own way",
            hint="name both or neither; what gives layers other modules goes before share.layers",
        )


def check_stay(shared: Iterable[tuple[str, str]], layers: Sequence[str], gone: Collection[str]) -> None:
    """Raise CookError if one of the layers that are to leave has parameters that others have too.

    Args:
        layers: of the model, first to last: their numbers are told.
    """
    named = [f"{name}." for pair in shared for name in pair]
    bound = {layer for layer in gone if any(name.startswith(f"{layer}.") for name in named)}
    if numbers := [str(number) for number, layer in enumerate(layers) if layer in bound]:
        raise CookError(
            f"would leave out layers that share parameters with others: {', '.join(numbers)}",
            hint="leave layers out before they share: prune.layers above share.layers, or student.layers",
        )


def ties(model: nn.Module, shared: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each parameter that is another one too, the name of that one, as transformers wants it."""
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
    """Tell transformers what is tied in a model, in the place of what was told of it before."""
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
    """In the place of `_adjust_bias` while shared parameters load: it would cut the bias of a Conv1D to the
    first axis of its weight, which there is the width of what comes in."""


def _like(parameters: Mapping[str, nn.Parameter]) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(each.shape), each.dtype) for name, each in parameters.items()}


def _held(module: nn.Module) -> dict[str, int]:
    """What a module can share; of one that was replaced by several, what these hold."""
    named = own(module) or dict(module.named_parameters(remove_duplicate=False))
    return {name: id(each) for name, each in named.items()}
