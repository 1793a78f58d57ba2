"""What heads and neurons cost: parameters, multiply-accumulates, or time on the machine at hand.

A `Cost` says for each attention and each FFN what it costs to have so many of its units, and what else there
is; passes that are given a goal choose by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from cook.model.arch.anatomy import Anatomy
from cook.model.arch.units import UnitGroup, owned, weights
from cook.model.edits.removal import remove
from cook.model.nn import linear, surgery
from cook.model.nn.composite import whole
from cook.model.probe.measure import latency, macs_by_module

POINTS = 8
"""How many numbers of heads, and of neurons, are timed for a table of latencies."""


@dataclass(frozen=True)
class Wide:
    """What of a cost goes with the width of the residual stream: is half of it where half the width is left.

    Attributes:
        curves: of each entry of the units, with all of them.
        layers: of what each layer costs beside its units.
        rest: of all else.
        square: what goes with the square of the width: matrices that read the stream and write to it.
    """

    curves: Sequence[float]
    layers: Mapping[str, float]
    rest: float
    square: float


@dataclass(frozen=True)
class Cost:
    """A model's cost by what is left in its layers.

    Attributes:
        goal: `parameters`, `macs` or `latency`.
        curves: for each entry of the units the cost of 0, 1, ... of them, float64 [count + 1], from 0 up.
        layers: what a layer costs whatever its units, by name: norms, biases of outputs.
        rest: all else: embeddings, the head.
        wide: what of it goes with the width; None where nobody asked, and for latency.
    """

    goal: str
    curves: Sequence[Tensor]
    layers: Mapping[str, float] = field(default_factory=dict)
    rest: float = 0.0
    wide: Wide | None = None

    @property
    def whole(self) -> float:
        """Of the model as it is."""
        return self.rest + sum(self.layers.values()) + sum(float(curve[-1]) for curve in self.curves)

    def of(self, left: Sequence[int]) -> float:
        """With so many units left of each entry, and all layers."""
        units = sum(float(curve[count]) for curve, count in zip(self.curves, left, strict=True))
        return self.rest + sum(self.layers.values()) + units


def parameters(model: nn.Module, units: Sequence[UnitGroup], stream: UnitGroup | None = None) -> Cost:
    """Parameters, those that are tied counted once.

    Args:
        stream: the residual stream, to know what goes with its width.
    """
    whole = sum(each.numel() for each in model.parameters())
    curves = [_line(each.count, weights(model, each)) for each in units]
    layers = {layer: surgery.get(model, layer) for each in units for layer in each.layers}
    inside = {name: float(sum(own.numel() for own in layer.parameters())) for name, layer in layers.items()}
    found = _completed("parameters", curves, units, inside, float(whole))
    return found if stream is None else replace(found, wide=_wide(model, found, units, stream))


def multiply_accumulates(
    model: nn.Module,
    units: Sequence[UnitGroup],
    batch: Mapping[str, Tensor],
    stream: UnitGroup | None = None,
) -> Cost:
    """Multiply-accumulates of one forward of a batch, counted as the report counts them.

    A linear layer's are shared out evenly over its rows or columns, those of the attention products over
    the heads.

    Args:
        stream: the residual stream, to know what goes with its width.
    """
    counted = macs_by_module(model, batch)
    curves = []
    for each in units:
        one = 0.0
        for part in each.parts:
            module = surgery.get(model, part.module)
            if linear.is_linear(module):
                numbers = sum(size for _, size in part.spans)
                size = linear.shape(module)[0 if part.axis == "out" else 1]
                one += counted.get(part.module, 0) * numbers / size
        if each.kind == "heads":
            one += _products(model, each, counted) / each.count
        curves.append(_line(each.count, one))
    inside = {layer: float(counted.get(layer, 0)) for each in units for layer in each.layers}
    found = _completed("macs", curves, units, inside, float(counted[""]))
    return found if stream is None else replace(found, wide=_wide(model, found, units, stream, counted))


def milliseconds(
    build: Callable[[], nn.Module],
    choose: Callable[[Anatomy], list[UnitGroup]],
    batch: Mapping[str, Tensor],
    *,
    points: int = POINTS,
) -> Cost:
    """The time of one forward of a batch, in milliseconds, on the device that the batch is on.

    For each kind of units whole models are timed of which every layer has the same share of them left, each
    in alternation with the unpruned one. What they save is shared out over the layers by how large their
    units are. Between the points a curve is straight, and it never falls.

    Args:
        build: makes a model as it is now, on that device; its weights do not matter.
        choose: the units of such a model, in the order of the curves.
        points: shares that are timed, of each kind.
    """
    whole = build().eval()
    units = choose(Anatomy(whole))
    curves = [torch.zeros(each.count + 1, dtype=torch.float64) for each in units]
    wholes = []
    for kind in sorted({each.kind for each in units}):
        chosen = [number for number, each in enumerate(units) if each.kind == kind]
        largest = max(units[number].count for number in chosen)
        steps = sorted({max(1, round(largest * step / points)) for step in range(points)})
        shares = [count / largest for count in steps]
        ratios: list[float] = []
        other = build().eval()  # one for all points: it gets smaller and smaller
        for share in reversed(shares):
            present = choose(Anatomy(other))
            for number in chosen:
                left = max(1, round(share * units[number].count))
                remove(other, present[number], torch.arange(present[number].count) < left)
            times = latency({"whole": whole, "other": other}, batch)
            ratios.insert(0, times["other"]["median"] / times["whole"]["median"])
            wholes.append(times["whole"]["median"])
        sizes = [units[number].count * weights(whole, units[number]) for number in chosen]
        spent = _spent([*shares, 1.0], [*ratios, 1.0])
        for number, size in zip(chosen, sizes, strict=True):
            share_left = torch.linspace(0, 1, units[number].count + 1, dtype=torch.float64)
            curves[number] = spent(share_left) * size / sum(sizes)
    total = float(np.median(wholes))
    curves = [total * curve for curve in curves]
    return Cost("latency", curves, {}, total - sum(float(curve[-1]) for curve in curves))


def timed(
    build: Callable[[], nn.Module],
    choose: Callable[[Anatomy], list[UnitGroup]],
    batch: Mapping[str, Tensor],
    keep: Sequence[Tensor],
) -> float:
    """The share of the time of one forward that is left with these units, as `milliseconds` measures it.

    Args:
        keep: bool [count] for each entry of the units, True where one stays.
    """
    whole, other = build().eval(), build().eval()
    for units, stays in zip(choose(Anatomy(other)), keep, strict=True):
        remove(other, units, stays)
    times = latency({"whole": whole, "other": other}, batch)
    return times["other"]["median"] / times["whole"]["median"]


def _spent(shares: list[float], ratios: list[float]) -> Callable[[Tensor], Tensor]:
    """What units take of the whole time by the share of them that is left, 0 where none is."""
    from sklearn.isotonic import isotonic_regression

    rising = isotonic_regression(ratios)
    if len(shares) == 1:
        return lambda left: left * 0.0
    slope = (rising[1] - rising[0]) / (shares[1] - shares[0])
    none = max(0.0, rising[0] - slope * shares[0])  # nothing is left without a head: where the line leads

    def spent(left: Tensor) -> Tensor:
        times = np.interp(left.numpy(), [0.0, *shares], [none, *rising])
        return torch.from_numpy(times - none)

    return spent


def _line(count: int, one: float) -> Tensor:
    return one * torch.arange(count + 1, dtype=torch.float64)


def _products(model: nn.Module, units: UnitGroup, counted: Mapping[str, int]) -> float:
    """What attention itself multiplies: all that its module does, without the linear layers in it."""
    rows = {whole(model, part.module) for part in units.parts if part.axis == "out"}
    modules = {name.rpartition(".")[0] for name in rows}
    inside = 0
    for name in modules:
        attention = surgery.get(model, name)
        linears = [path for path, module in attention.named_modules() if linear.is_linear(module)]
        inside += counted.get(name, 0) - sum(counted.get(f"{name}.{path}", 0) for path in linears)
    return float(inside)


def _wide(
    model: nn.Module,
    cost: Cost,
    units: Sequence[UnitGroup],
    stream: UnitGroup,
    counted: Mapping[str, int] | None = None,
) -> Wide:
    """What of a cost goes with the width of the stream.

    Args:
        counted: multiply-accumulates by module; None where parameters are counted.
    """
    axes: dict[str, int] = {}
    for part in stream.parts:
        for name, *_ in owned(model, part):
            axes[name] = axes.get(name, 0) + 1
    homes = {
        name: number
        for number, each in enumerate(units)
        for part in each.parts
        for name, *_ in owned(model, part)
    }
    curves, layers = [0.0] * len(units), dict.fromkeys(cost.layers, 0.0)
    rest, square = 0.0, 0.0
    seen: set[int] = set()
    for name, number in axes.items():
        parameter = model.get_parameter(name)
        if counted is None:
            amount = 0.0 if id(parameter) in seen else float(parameter.numel())
            seen.add(id(parameter))
        else:
            amount = float(counted.get(name.removesuffix(".weight"), 0))
        layer = next((each for each in layers if name.startswith(f"{each}.")), None)
        if name in homes:
            curves[homes[name]] += amount
        elif layer is not None:
            layers[layer] += amount
        elif number == 1:
            rest += amount
        else:
            square += amount
    return Wide(curves, layers, rest, square)


def _completed(
    goal: str,
    curves: Sequence[Tensor],
    units: Sequence[UnitGroup],
    inside: Mapping[str, float],
    whole: float,
) -> Cost:
    """With what layers cost beside their units, and what is outside of layers.

    Args:
        inside: by layer, all that it costs.
    """
    layers = dict(inside)
    for each, curve in zip(units, curves, strict=True):
        for layer in each.layers:
            layers[layer] -= float(curve[-1]) / len(each.layers)
    return Cost(goal, curves, layers, whole - sum(inside.values()))
