"""Which layers share, and which of their modules: what a recipe asks for, met with a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.parts import Stack
from cook.model.arch.targets import within
from cook.model.edits.depth import beyond
from cook.model.edits.edit import Edit
from cook.model.nn import linear, surgery
from cook.model.nn.sharing import own


@dataclass(frozen=True)
class Group:
    """Layers that share.

    Attributes:
        layers: their names, at least two.
        modules: those in each of them whose parameters are shared, by their names in the layer.
    """

    layers: tuple[str, ...]
    modules: tuple[str, ...]

    def names(self, layer: str) -> list[str]:
        """The full names of the modules in one of the layers."""
        return [f"{layer}.{name}" if name else layer for name in self.modules]

    def linears(self, model: nn.Module) -> list[str]:
        """The full names of those that are linear layers, in the first layer."""
        return [name for name in self.names(self.layers[0]) if linear.is_linear(surgery.get(model, name))]

    def parameters(self, model: nn.Module, layer: str) -> dict[str, nn.Parameter]:
        """What is shared in one of the layers, by the names in it."""
        return {
            f"{name}.{key}": parameter
            for name, full in zip(self.modules, self.names(layer), strict=True)
            for key, parameter in own(surgery.get(model, full)).items()
        }

    def saves(self, model: nn.Module, rank: int) -> int:
        """How many parameters fewer there are when these layers share, residuals of a rank counted in."""
        shared = sum(each.numel() for each in self.parameters(model, self.layers[0]).values())
        sizes = [linear.shape(surgery.get(model, name)) for name in self.linears(model)]
        return (len(self.layers) - 1) * shared - len(self.layers) * rank * sum(map(sum, sizes))

    def edits(self, model: nn.Module, rank: int) -> Iterator[Edit]:
        """What ties the layers, to be made in this order.

        Args:
            rank: of the residual that each linear layer keeps; 0 for none.
        """
        linears = self.linears(model) if rank else []
        beside = [name in linears for name in self.names(self.layers[0])]
        ends = [".shared" if each else "" for each in beside]
        for layer in self.layers:
            for name, has in zip(self.names(layer), beside, strict=True):
                if has:
                    yield Edit("residual", name, {"rank": rank})
        for layer in self.layers[1:]:
            for name, of, end in zip(self.names(layer), self.names(self.layers[0]), ends, strict=True):
                yield Edit("share", name + end, {"of": of + end})


def grouped(anatomy: Anatomy, asked: str | int | Sequence[Sequence[int]], parts: str) -> list[Group]:
    """The groups of a model, first to last, without those of one layer.

    An encoder's layers and a decoder's are of different kinds: consecutive ones are taken of each by itself.

    Args:
        asked: `all`, the number of consecutive layers that share, or lists of layer numbers.
        parts: `all`, `attention` or `ffn`.

    Raises:
        CookError: the groups overlap, leave layers out, or hold layers that cannot share.
    """
    for layer, stack in anatomy.stacks.items():
        if "*" in stack.layers:
            message = f"{layer} of this {anatomy.kind} model runs several times: its layers share already"
            raise CookError(message, hint="num_hidden_groups in its config says how many there are")
    if isinstance(asked, (str, int)):
        chosen = [each for own in _by_stack(anatomy) for each in consecutive(own, asked)]
    else:
        chosen = _listed(anatomy, asked)
    several = [layers for layers in chosen if len(layers) > 1]
    if not several:
        raise CookError("no layer would share with another", hint="groups: 2, or all for one of all layers")
    return [Group(tuple(layers), _common(anatomy, layers, parts)) for layers in several]


def consecutive(layers: Sequence[str], asked: str | int) -> list[list[str]]:
    """Layers in groups of so many that follow each other; `all` for one group.

    Raises:
        CookError: they do not divide evenly.
    """
    size = len(layers) if isinstance(asked, str) else asked
    if len(layers) % size:
        fitting = [each for each in range(2, len(layers) + 1) if len(layers) % each == 0]
        hint = f"a divisor of {len(layers)} ({', '.join(map(str, fitting))}), or lists of layers"
        if not fitting:
            hint = "it takes two layers or more"
        raise CookError(f"{len(layers)} layers do not divide into groups of {size}", hint=hint)
    return [list(layers[start : start + size]) for start in range(0, len(layers), size)]


def _by_stack(anatomy: Anatomy) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for layer in anatomy.live:
        found.setdefault(id(anatomy.stacks[layer]), []).append(layer)
    return list(found.values())


def _listed(anatomy: Anatomy, asked: Sequence[Sequence[int]]) -> list[list[str]]:
    layers, live = anatomy.layers, set(anatomy.live)
    if message := beyond([number for group in asked for number in group], len(layers)):
        raise CookError(message)
    groups = [[number % len(layers) for number in group] for group in asked]
    flat = [number for group in groups for number in group]
    for number in flat:
        if flat.count(number) > 1:
            hint = "every layer belongs to one group; a list of one layer leaves it alone"
            raise CookError(f"layer {number} is named {flat.count(number)} times", hint=hint)
        if layers[number] not in live:
            raise CookError(f"layer {number} is left out by another pass", hint="leave it out here too")
    if lacking := [number for number, layer in enumerate(layers) if layer in live and number not in flat]:
        numbers = ", ".join(map(str, lacking))
        hint = f"add [{lacking[0]}] for a layer that shares with none"
        raise CookError(f"no group holds layer{'s' * (len(lacking) > 1)} {numbers}", hint=hint)
    for group in groups:
        kinds = {id(anatomy.stacks[layers[number]]): number for number in reversed(group)}
        if len(kinds) > 1:
            one, other = sorted(kinds.values())[:2]
            message = f"layers {one} and {other} are of different kinds: {layers[one]} and {layers[other]}"
            raise CookError(message, hint="group an encoder's layers and a decoder's apart")
    return [[layers[number] for number in sorted(group)] for group in groups]


def _common(anatomy: Anatomy, layers: Sequence[str], parts: str) -> tuple[str, ...]:
    """The modules to share, by their names in a layer; the same in all of these layers."""
    model = anatomy.model
    found = [_modules(model, layer, anatomy.stacks[layer], parts) for layer in layers]
    shared = [
        Group((layer,), tuple(names)).parameters(model, layer)
        for layer, names in zip(layers, found, strict=True)
    ]
    sizes = [{name: tuple(each.shape) for name, each in one.items()} for one in shared]
    numbers = [anatomy.layers.index(layer) for layer in layers]
    for number, other in zip(numbers[1:], sizes[1:], strict=True):
        if differing := sorted(set(sizes[0].items()) ^ set(other.items())):
            name = differing[0][0]
            one, two = (
                " x ".join(map(str, each[name])) if name in each else "not there"
                for each in (sizes[0], other)
            )
            raise CookError(
                f"layers {numbers[0]} and {number} are not alike: {name} is {one} in one, {two} in the other",
                hint="let layers share before anything makes them unequal (lowrank.linear does not with"
                " `spread: false`), or group those that are alike",
            )
    held: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        held[id(parameter)] = held.get(id(parameter), 0) + 1
    for layer, its in zip(layers, shared, strict=True):
        if tied := [name for name, each in its.items() if held[id(each)] > 1]:
            message = f"{layer}.{tied[0]} is shared already"
            raise CookError(message, hint="let one pass share these layers, or another part of them")
    return tuple(found[0])


def _modules(model: nn.Module, layer: str, stack: Stack, parts: str) -> list[str]:
    # Only T5's first layer has one, which serves all.
    apart = {each.bias for each in stack.attentions if each.bias}
    every = [
        name
        for name, module in surgery.get(model, layer).named_modules()
        if own(module) and name not in apart
    ]
    if parts == "all":
        return every
    attention, ffn = (*stack.attention, *stack.norms[0]), (*stack.ffn, *stack.norms[1])
    known = set(within(every, (*attention, *ffn)))
    if unknown := [name for name in every if name not in known]:
        message = f"cook does not know whether {layer}.{unknown[0]} belongs to the attention or to the FFN"
        raise CookError(message, hint="share both: parts: all")
    return within(every, attention if parts == "attention" else ffn)
