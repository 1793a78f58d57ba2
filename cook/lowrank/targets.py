"""Which matrices `lowrank.linear` acts on, and which of them are several products in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy, head_width
from cook.model.arch.parts import Stack
from cook.model.arch.targets import left_out, matching, select, within
from cook.model.edits.edit import Edit
from cook.model.nn import surgery
from cook.model.nn.composite import whole
from cook.model.nn.linear import is_linear, shape
from cook.passes import Pass


@dataclass(frozen=True)
class Target:
    """A matrix [out, in_]; `fused` is the layer that it will be a part of, once that is taken apart."""

    name: str
    out: int
    in_: int
    fused: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.out, self.in_

    @property
    def count(self) -> int:
        """How many weights it has."""
        return self.out * self.in_


def targets(owner: Pass, anatomy: Anatomy) -> tuple[list[Edit], list[Target]]:
    """The matrices, in the model's order, and the edits that take fused ones apart.

    Factors of layers that are low rank already are no targets.

    Args:
        owner: whose options count, and whom errors point at.

    Raises:
        CookError: nothing matches, all that does is low rank already, or a matrix is tied to another one.
    """
    options, model = owner.options, anatomy.model
    named = select(anatomy, options.include, options.exclude, replaced=True)
    names = [name for name in named if whole(model, name) == name]
    if not names:
        message = f"all {len(named)} linear layers that are selected are factors of a low rank already"
        raise owner.error(message, hint="leave the pass out, or include layers that are whole")
    _check(owner, model, names)
    apart = _fused(anatomy) if options.fused == "apart" else {}
    edits, found = [], []
    for name in names:
        out, columns = shape(model.get_submodule(name))
        if name not in apart:
            found.append(Target(name, out, columns))
            continue
        rows, width = apart[name]
        edits.append(Edit("apart", name, {"rows": rows, "width": width}))
        found += [Target(f"{name}.{part}", own, columns, name) for part, own in enumerate(rows)]
    return edits, found


def beside(owner: Pass, anatomy: Anatomy) -> str:
    """What the selection holds and is no target, in words; nothing where all of it is one."""
    include, exclude = owner.options.include, owner.options.exclude
    return left_out(anatomy, include, exclude, select(anatomy, include, exclude, replaced=True))


def named_in_ranks(
    owner: Pass, anatomy: Anatomy, splits: Sequence[Edit], several: Sequence[Target]
) -> tuple[list[Edit], list[Target]]:
    """Those of the edits and targets that the option `ranks` names, in its patterns.

    Raises:
        CookError: a pattern names none.
    """
    modules = [each.fused or each.name for each in several]
    chosen: set[str] = set()
    for pattern in owner.options.ranks:
        if not (named := _named(owner, anatomy, pattern, modules)):
            message, hint = f"{pattern!r} matches no target", "it has to match one of those that are included"
            raise owner.error(message, option="ranks", hint=hint)
        chosen.update(named)
    edits = [edit for edit in splits if edit.module in chosen]
    return edits, [each for each in several if (each.fused or each.name) in chosen]


def rank_told(owner: Pass, anatomy: Anatomy, target: Target) -> int:
    """The rank that the first pattern of `ranks` gives that matches a target."""
    name = target.fused or target.name
    return next(
        int(rank)
        for pattern, rank in owner.options.ranks.items()
        if name in _named(owner, anatomy, pattern, [name])
    )


def _named(owner: Pass, anatomy: Anatomy, pattern: str, names: Sequence[str]) -> list[str]:
    try:
        return within(names, matching(anatomy, pattern))
    except CookError as error:
        raise owner.error(error.message, option="ranks", hint=error.hint) from error


def _check(owner: Pass, model: nn.Module, names: Sequence[str]) -> None:
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if is_linear(module) or isinstance(module, nn.Embedding):
            holders.setdefault(id(module.weight), []).append(name)
    for name in names:
        own: Any = surgery.get(model, name)
        if getattr(own, "packed", False):
            hint = "model = model.dequantize() gives floats; or exclude it"
            raise owner.error(f"{name} holds integers, which have no factors", option="include", hint=hint)
        if others := [other for other in holders[id(own.weight)] if other != name]:
            message = f"the weight of {name} is that of {others[0]} too, which two factors cannot be"
            raise owner.error(
                message,
                option="include",
                hint="where layers share, lowrank.linear goes above share.layers, with `spread: false`;"
                " or leave it out",
            )


def _fused(anatomy: Anatomy) -> Mapping[str, tuple[list[int], int | None]]:
    """The linear layers that give several products: the rows of each, and how many lie together (`Apart`)."""
    if anatomy.family is None:
        return {}
    return {
        name: parts
        for layer in anatomy.live
        for name, parts in _of_layer(anatomy.model, layer, anatomy.stacks[layer])
    }


def _of_layer(
    model: nn.Module, layer: str, stack: Stack
) -> Iterator[tuple[str, tuple[list[int], int | None]]]:
    for attention in stack.attentions:
        name = f"{layer}.{attention.projections[0]}"
        rows = shape(surgery.get(model, name))[0]
        if attention.layout == "stacked":
            queries = shape(surgery.get(model, f"{layer}.{attention.output}"))[1]
            yield name, ([queries, (rows - queries) // 2, (rows - queries) // 2], None)
        elif attention.layout == "interleaved":
            width = head_width(surgery.get(model, f"{layer}.{attention.module}"))
            yield name, ([rows // 3] * 3, int(width) if width else None)
    neurons = shape(surgery.get(model, f"{layer}.{stack.feed_forward.down}"))[1]
    for name in (f"{layer}.{each}" for each in stack.feed_forward.up):
        if surgery.has(model, name):
            rows = shape(surgery.get(model, name))[0]
            if rows > neurons and rows % neurons == 0:
                yield name, ([neurons] * (rows // neurons), None)
