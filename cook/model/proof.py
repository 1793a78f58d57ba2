"""Whether the units of a layer may leave: a layer without them must give what it gives with them at zero.

For families that have no entry in `cook.model.families` and are inferred from the names of their modules.
Names do not tell how an attention divides its projections into heads, or which of them belong together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model import surgery
from cook.model.anatomy import Anatomy
from cook.model.bare import bare
from cook.model.example import FAILURES, Unmeasured, examples
from cook.model.families import FAMILIES
from cook.model.hooks import Hooks
from cook.model.measure import evaluating
from cook.model.units import Units, masks, remove

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the named arguments of a forward."""


@torch.no_grad()
def prove(anatomy: Anatomy, several: Sequence[Units]) -> None:
    """Compare, for one layer of each kind, the masked and the reduced layer on random weights and inputs.

    Args:
        anatomy: of the model, also on the meta device. It stays as it is, and only single layers get
            weights, so that large models need little memory. A family with an entry is not looked at:
            the shared tests do so.
        several: what may leave.

    Raises:
        CookError: the outputs differ, or the reduced layer does not run. A layer whose inputs are not known
            before there is data passes: the finished model is compared again.
    """
    model: Any = anatomy.model
    if anatomy.kind in FAMILIES or (copied := bare(model)) is None:
        return
    seen = set()
    for units in several:
        layer = units.layers[0]
        inner = units.outputs[0].module.removeprefix(layer)
        kind = (type(model.get_submodule(layer)), units.kind, inner, units.count)
        if units.count > 1 and kind not in seen and (call := _call(copied, layer)) is not None:
            seen.add(kind)
            _compare(anatomy.kind, copied, units, call)


def _compare(kind: str, model: nn.Module, units: Units, call: Call) -> None:
    generator = torch.Generator().manual_seed(0)
    keep = torch.arange(units.count) != units.count // 2
    given = _filled(call, generator)
    masked = copy.deepcopy(model)
    for layer in units.layers:
        _fill(masked.get_submodule(layer), generator)
    reduced = copy.deepcopy(masked)
    for name, mask in masks(masked, units, keep):
        masked.get_parameter(name).mul_(mask)
    where = f"{units.kind} of {units.where} in a {kind!r} model, whose parts are inferred from their names"
    hint = f"leave {units.layers[0].rpartition('.')[0]} out, or use prune.weights or lowrank.linear"
    for layer in units.layers:
        expected = _run(masked, layer, given)
        if not expected or not all(bool(each.isfinite().all()) for each in expected):
            return  # random inputs are not what this layer takes; the finished model is compared
    try:
        remove(reduced, units, keep)
        for layer in units.layers:
            pairs = list(zip(_run(masked, layer, given), _run(reduced, layer, given), strict=True))
            if any(
                one.shape != other.shape or not torch.allclose(one, other, rtol=1e-3, atol=1e-4)
                for one, other in pairs
            ):
                raise CookError(
                    f"cook does not know the {where}: without one of them a layer gives something else than"
                    " with it at zero",
                    hint=hint,
                )
    except (*FAILURES, KeyError) as failure:
        text = " ".join(str(failure).split())[:120]
        raise CookError(
            f"cook cannot remove {where}: the smaller layer does not run: {text}", hint=hint
        ) from None


def _run(model: nn.Module, layer: str, call: Call) -> list[Tensor]:
    arguments, named = copy.deepcopy(call)
    module = model.get_submodule(layer)
    with evaluating(module):
        output = module(*arguments, **named)
    found = output if isinstance(output, (tuple, list)) else [output]
    return [each for each in found if isinstance(each, Tensor) and each.is_floating_point()]


class _CalledError(Exception):
    """The layer was reached: the rest of the forward is of no interest."""


def _call(model: Any, layer: str) -> Call | None:
    """What a layer is called with in a forward of a small example; None where none comes there."""
    calls: list[Call] = []

    def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((arguments, named))
        raise _CalledError

    hooks = Hooks()
    hooks.forward_pre(surgery.get(model, layer), before, named=True)
    try:
        with evaluating(model):
            for example in examples(model):
                with suppress(*FAILURES, _CalledError):
                    model(**example)
                if calls:
                    return calls[0]
    except Unmeasured:
        pass
    finally:
        hooks.close()
    return None


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """Give a module on the meta device random values."""
    for each in module.modules():
        for name, parameter in each.named_parameters(recurse=False):
            setattr(each, name, nn.Parameter(_random(parameter, generator), requires_grad=False))
        for name, buffer in each.named_buffers(recurse=False):
            setattr(each, name, _random(buffer, generator))


def _random(value: Tensor, generator: torch.Generator) -> Tensor:
    if value.is_floating_point():
        return 0.3 * torch.randn(value.shape, generator=generator)
    if value.dtype is torch.bool:
        return torch.ones(value.shape, dtype=torch.bool)
    return torch.zeros(value.shape, dtype=value.dtype)


def _filled(value: Any, generator: torch.Generator) -> Any:
    """Arguments with random numbers in their tensors, and without caches of keys and values."""
    if isinstance(value, Tensor):
        return _random(value, generator)
    if isinstance(value, (tuple, list)):
        return type(value)(_filled(each, generator) for each in value)
    if isinstance(value, dict):
        return {name: _filled(each, generator) for name, each in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else None
