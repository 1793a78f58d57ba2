"""Heads and neurons: the units that are removed together, as rows and columns of several modules.

A unit is a head with everything that belongs to it (for grouped queries: a key-value head with all its
queries), or a neuron of an FFN: a row of its input projections and a column of its output projection. If
layers must keep the same heads (T5, where all use the first layer's position bias) or share parameters, a
unit extends over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy, head_width
from cook.model.arch.parts import Attention, FeedForward
from cook.model.nn import linear, surgery
from cook.model.nn.composite import places


@dataclass(frozen=True)
class Part:
    """The indices that units own in one module: unit u owns `start + u * size` up to `+ size`, for each span.

    Attributes:
        axis: `out` for rows of the matrix and their biases, or the width of an embedding or of a norm; `in`
            for columns.
        spans: (start, size) each.
    """

    module: str
    axis: str
    spans: tuple[tuple[int, int], ...]

    def numbers(self, units: Tensor) -> Tensor:
        """The indices that these units own, in increasing order.

        Args:
            units: bool [count].
        """
        owned = [
            start + torch.arange(len(units) * size, device=units.device).view(-1, size)[units].flatten()
            for start, size in self.spans
        ]
        return torch.cat(owned)


@dataclass(frozen=True)
class UnitGroup:
    """The heads of an attention or the neurons of an FFN.

    Attributes:
        kind: `heads` or `neurons`; `hidden` for the dimensions of a residual stream
            (`cook.model.arch.width`).
        layers: the layers that contain them; several if these must keep the same ones.
        count: number of units.
        parts: everything that the units own.
        outputs: the parts whose columns read the units' outputs.
        counts: by module, the attributes that count the units, each with the amount per unit.
        heads: heads per unit of kind `heads`: more than one if several queries share a key.
    """

    kind: str
    layers: tuple[str, ...]
    count: int
    parts: tuple[Part, ...]
    outputs: tuple[Part, ...]
    counts: Mapping[str, Mapping[str, int]]
    heads: int = 1

    @property
    def where(self) -> str:
        """A short name of the modules that the units belong to."""
        path = self.outputs[0].module
        return path if len(self.outputs) == 1 else f"{path} and {len(self.outputs) - 1} more"


def heads(anatomy: Anatomy) -> list[UnitGroup]:
    """The heads of every attention, first layer to last.

    Raises:
        CookError: the family is unknown, or a projection does not have a whole number of heads.
    """
    found: list[UnitGroup] = []
    alike: dict[tuple[int, str], list[UnitGroup]] = {}
    for layer in anatomy.live:
        stack = anatomy.stacks[layer]
        for attention in stack.attentions:
            units = _heads(anatomy.model, layer, attention)
            if attention.alike:
                alike.setdefault((id(stack), attention.output), []).append(units)
            else:
                found.append(units)
    return _joined(anatomy.model, found) + [_together(each) for each in alike.values()]


def neurons(anatomy: Anatomy) -> list[UnitGroup]:
    """The neurons of every FFN, first layer to last.

    Raises:
        CookError: the family is unknown, or the input and output projections of an FFN do not match.
    """
    model = anatomy.model
    return _joined(model, [_neurons(model, each, anatomy.stacks[each].feed_forward) for each in anatomy.live])


def units(anatomy: Anatomy) -> list[UnitGroup]:
    """All heads, then all neurons."""
    return [*heads(anatomy), *neurons(anatomy)]


def _heads(model: nn.Module, layer: str, attention: Attention) -> UnitGroup:
    module = f"{layer}.{attention.module}"
    owner: Any = surgery.get(model, module)
    width = head_width(owner)
    if not isinstance(width, int):
        raise CookError(f"{module} does not say how wide a head is")
    query, key, value = (f"{layer}.{name}" for name in attention.projections)
    output = f"{layer}.{attention.output}"
    number = _whole(size(model, output, "in"), width, output)
    rows = _whole(size(model, key, "out"), width, key)
    if attention.layout == "apart":
        groups = rows
    elif attention.layout == "stacked":
        groups = _whole(rows - number, 2, key)
    else:
        groups = _whole(rows, 3, key)
    each = _whole(number, groups, output)
    owned: dict[str, tuple[tuple[int, int], ...]] = {}
    if attention.layout == "apart":
        owned = {query: ((0, each * width),), key: ((0, width),), value: ((0, width),)}
    elif attention.layout == "stacked":
        starts = (number * width, (number + groups) * width)
        owned = {query: ((0, each * width), *((start, width) for start in starts))}
    else:
        owned = {query: ((0, 3 * width),)}
    further = [f"{layer}.{name}" for name in attention.also]
    owned |= {name: ((0, width),) for name in further if surgery.has(model, name)}
    parts = [part for name, spans in owned.items() for part in placed(model, name, "out", spans)]
    if attention.bias and surgery.has(model, f"{layer}.{attention.bias}"):
        parts.append(Part(f"{layer}.{attention.bias}", "out", ((0, each),)))
    joined = placed(model, output, "in", ((0, each * width),))
    worth = {"heads": each, "groups": 1, "width": each * width}
    counts = {
        name: worth[what]
        for name, what in attention.counts.items()
        if surgery.count(owner, name) == groups * worth[what]
    }
    named = {module: counts} if counts else {}
    return UnitGroup("heads", (layer,), groups, (*parts, *joined), tuple(joined), named, each)


def _neurons(model: nn.Module, layer: str, ffn: FeedForward) -> UnitGroup:
    down = f"{layer}.{ffn.down}"
    count = size(model, down, "in")
    parts: list[Part] = []
    for name in (f"{layer}.{each}" for each in ffn.up):
        if surgery.has(model, name):
            times = _whole(size(model, name, "out"), count, name)
            parts += placed(model, name, "out", tuple((index * count, 1) for index in range(times)))
    if not parts:
        raise CookError(f"{layer} has none of {', '.join(ffn.up)}")
    joined = placed(model, down, "in", ((0, 1),))
    return UnitGroup("neurons", (layer,), count, (*parts, *joined), tuple(joined), {})


def _joined(model: nn.Module, several: Sequence[UnitGroup]) -> list[UnitGroup]:
    """Join groups that own parts of the same parameters, at the position of the first of them."""
    groups: list[tuple[set[int], list[UnitGroup]]] = []
    for each in several:
        parameters = {id(parameter) for part in each.parts for _, parameter, _ in owned(model, part)}
        overlapping = [group for group in groups if group[0] & parameters]
        if not overlapping:
            groups.append((parameters, [each]))
            continue
        for group in overlapping[1:]:
            groups.remove(group)
        overlapping[0][0].update(parameters, *(group[0] for group in overlapping[1:]))
        overlapping[0][1].extend([*(one for group in overlapping[1:] for one in group[1]), each])
    return [group[0] if len(group) == 1 else _together(group) for _, group in groups]


def placed(model: nn.Module, name: str, axis: str, spans: tuple[tuple[int, int], ...]) -> list[Part]:
    """The spans that units own in a layer; for a composite, in its parts with these rows or columns."""
    return [Part(place, axis, own) for place, own in places(model, name, axis, spans)]


def _together(several: Sequence[UnitGroup]) -> UnitGroup:
    first = several[0]
    if any(each.count != first.count for each in several):
        raise CookError(f"the layers at {first.where} must have equal heads, and have not")
    return UnitGroup(
        first.kind,
        tuple(layer for each in several for layer in each.layers),
        first.count,
        tuple(part for each in several for part in each.parts),
        tuple(part for each in several for part in each.outputs),
        {module: counts for each in several for module, counts in each.counts.items()},
        first.heads,
    )


def masks(model: nn.Module, units: UnitGroup, keep: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The masks that zero the units not kept: names of parameters, and bool tensors of their shapes.

    Everything that a unit owns is masked, so that removing it does not change the output for any input.

    Args:
        keep: bool [units.count].
    """
    removed = ~keep.cpu()
    found: dict[str, Tensor] = {}
    for part in units.parts:
        for name, parameter, axis in owned(model, part):
            mask = found.setdefault(name, torch.ones(parameter.shape, dtype=torch.bool))
            mask.index_fill_(axis, part.numbers(removed), False)
    for name, mask in found.items():
        yield name, mask.to(model.get_parameter(name).device)


def owned(model: nn.Module, part: Part) -> Iterator[tuple[str, nn.Parameter, int]]:
    """The parameters that contain the part: their names, the parameters, and the axis."""
    module = surgery.get(model, part.module)
    for name, parameter in module.named_parameters(recurse=False):
        if surgery.is_vectors(module):
            yield f"{part.module}.{name}", parameter, parameter.ndim - 1
        elif name == "weight" or (name == "bias" and part.axis == "out"):
            axis = 0 if name == "bias" else axis_of(module, part.axis)
            yield f"{part.module}.{name}", parameter, axis


def weights(model: nn.Module, units: UnitGroup) -> int:
    """The number of parameters that one unit owns; a shared parameter counts once."""
    seen: set[tuple[int, int]] = set()
    count = 0
    for part in units.parts:
        numbers = sum(size for _, size in part.spans)
        for _, parameter, axis in owned(model, part):
            if (id(parameter), axis) not in seen:
                count += numbers * (parameter.numel() // parameter.shape[axis])
            seen.add((id(parameter), axis))
    return count


def axis_of(module: nn.Module, axis: str) -> int:
    """The axis of a module's weight that a part calls `out` or `in`."""
    flipped = linear.is_transposed(module) or isinstance(module, nn.Embedding)
    return int((axis == "out") == flipped)


def remaining(model: nn.Module, units: UnitGroup) -> Iterator[tuple[str, float]]:
    """The number of units in each module that reads them now; removed modules are skipped.

    Yields:
        The name of the module and the number of units, which is integral unless the module was cut wrongly.
    """
    for part in units.outputs:
        if surgery.has(model, part.module):
            yield part.module, size(model, part.module, "in") / sum(span for _, span in part.spans)


def size(model: nn.Module, name: str, axis: str) -> int:
    """The number of rows (`out`) or columns (`in`) of a module, as defined for a part.

    Raises:
        CookError: the module has no rows or columns that can be removed.
    """
    module: Any = surgery.get(model, name)
    if isinstance(module, nn.Embedding):
        return module.embedding_dim if axis == "out" else module.num_embeddings
    if surgery.is_channels(module):
        return module.out_channels if axis == "out" else module.in_channels
    if surgery.is_vectors(module):
        return next(module.parameters(recurse=False)).shape[-1]
    if not (linear.is_linear(module) or linear.is_composite(module)):
        raise CookError(f"{name} is a {type(module).__name__}, expected a linear layer")
    return linear.shape(module)[0 if axis == "out" else 1]


def _whole(number: int, divisor: int, name: str) -> int:
    if divisor < 1 or number < 1 or number % divisor:
        raise CookError(f"the {number} rows or columns of {name} are no whole number of {divisor}")
    return number // divisor
