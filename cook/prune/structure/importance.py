"""How important heads and neurons are: what the loss says to closing them, how large they are, or chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cook.model.arch.units import Part, UnitGroup, axis_of
from cook.model.calibration.statistics import loss_shares
from cook.model.nn.hooks import Hooks
from cook.model.probe.batch import examples_in
from cook.model.probe.measure import evaluating


def gradient_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    units: Sequence[UnitGroup],
    *,
    power: int = 1,
) -> list[Tensor]:
    """The mean over examples of `|dL/dg|^power`, where g is a gate on what a unit gives, open at 1.

    P. Michel, O. Levy, G. Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019, equation 2: to
    first order, how much the loss of one example changes when the unit closes. The absolute value is
    taken of each example's own derivative, since those of a batch would cancel out; one backward of a
    batch gives them all, because every example has gates of its own.

    Args:
        model: returns the mean loss over a batch's labels; it runs in eval mode.
        batches: inputs with labels, on the model's device.

    Returns:
        For each entry of `units` its scores [count], float32.
    """
    found = [torch.zeros(each.count, device=_device(model)) for each in units]
    examples = 0
    for batch in batches:
        count = examples_in(batch)
        gates = [torch.ones(count, len(total), device=total.device, requires_grad=True) for total in found]
        hooks = Hooks()
        for each, gate in zip(units, gates, strict=True):
            for part in each.outputs:
                hooks.forward_pre(model.get_submodule(part.module), _closing(part, gate))
        try:
            with evaluating(model), torch.enable_grad():
                outputs: Any = model(**batch)
                share = loss_shares(model, batch, count, outputs)
                slopes = torch.autograd.grad(outputs.loss, gates)
        finally:
            hooks.close()
        share = share.to(slopes[0].device)
        for total, slope in zip(found, slopes, strict=True):
            total += (slope.float() / share[:, None]).abs().pow(power).sum(0)
        examples += count
    return [total / max(1, examples) for total in found]


@torch.no_grad()
def magnitude_importance(model: nn.Module, units: Sequence[UnitGroup]) -> list[Tensor]:
    """The root of the mean square of all numbers that a unit owns, [count] for each entry of `units`."""
    found = []
    for each in units:
        squares, size = torch.zeros(each.count, device=_device(model)), 0
        for part in each.parts:
            for numbers in model.get_submodule(part.module).parameters(recurse=False):
                rows = _by_row(model.get_submodule(part.module), part.axis, numbers)
                if rows is None:
                    continue
                for start, width in part.spans:
                    own = rows[start : start + each.count * width].float().reshape(each.count, -1)
                    squares, size = squares + own.square().sum(1), size + own.shape[1]
        found.append((squares / size).sqrt())
    return found


def random_importance(units: Sequence[UnitGroup], seed: int) -> list[Tensor]:
    """Uniform numbers [count] for each entry of `units`: what a criterion has to be better than."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(each.count, generator=generator) for each in units]


def normalized(scores: Sequence[Tensor]) -> list[Tensor]:
    """Each layer's scores at an L2 norm of 1, so that layers with larger gradients keep no more units for it.

    Michel et al. 2019, section 4.1 (after Molchanov et al. 2017). Scores that are all zero stay so.
    """
    return [each / each.norm().clamp_min(torch.finfo(each.dtype).tiny) for each in scores]


def _closing(part: Part, gate: Tensor) -> Any:
    (_, size) = part.spans[0]

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = inputs[0]
        # [examples, anything between, units, numbers of a unit]; some FFNs lay all tokens in a row.
        apart = given.reshape(len(gate), -1, gate.shape[1], size)
        return (apart * gate[:, None, :, None].to(given.dtype)).view_as(given), *inputs[1:]

    return hook


def _by_row(module: nn.Module, axis: str, numbers: Tensor) -> Tensor | None:
    """A parameter with the numbers of units on its first axis; None for a bias that no unit owns."""
    if numbers.ndim == 1:
        return numbers if axis == "out" else None
    return numbers.movedim(axis_of(module, axis), 0).flatten(1)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
