"""Statistics of any linear layers of a model: layer by layer where it is built so, else by whole forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.targets import within
from cook.model.calibration.input_statistics import InputStatistics, Kind, output_tokens, source_tokens
from cook.model.calibration.layerwise import Layerwise
from cook.model.nn.hooks import Hooks
from cook.model.probe.measure import evaluating


@torch.no_grad()
def throughout(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    targets: Sequence[str],
    kind: Kind,
    own: Mapping[str, Kind] | None = None,
) -> dict[str, Any]:
    """The same from whole forwards: for linears outside of layers, and layers that run several times.

    Raises:
        CookError: there are no examples, or a target is not run.
    """
    state, hooks = InputStatistics(kind, own or {}), Hooks()
    valid: Tensor | None = None
    source: tuple[int, Tensor | None] = 0, None

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del state.added[:-1]  # what gets the same tensor does so in a row
            # What of a decoder reads the encoder is told by how many tokens it gets.
            count, mask = source
            reads = count == inputs[0].shape[:-1].numel()
            state.add(name, module, inputs[0], mask if reads else valid)

        return before

    try:
        for name in targets:
            hooks.forward_pre(model.get_submodule(name), hook(name))
        with evaluating(model):
            for batch in batches:
                state.added.clear()
                # What lies outside of layers reads what they give.
                valid, source = output_tokens(model, batch), source_tokens(model, batch)
                model(**batch)
    finally:
        hooks.close()
    if missing := [name for name in targets if name not in state.found]:
        raise CookError(f"{missing[0]} is not run by the model", hint=f"exclude: [{missing[0]}]")
    return state.found


def walk(
    anatomy: Anatomy,
    examples: Callable[[], Iterable[Mapping[str, Tensor]]],
    targets: Sequence[str],
    kind: Kind,
    own: Mapping[str, Kind] | None = None,
) -> Iterator[dict[str, Any]]:
    """The statistics of all targets, those of one layer at a time, for a caller that changes them in between.

    Layers that run several times are one, all of them together; what lies outside of layers comes at the end.

    Args:
        examples: gives the same batches at every call.

    Raises:
        CookError: as in `Layerwise` and `throughout`.
    """
    left = list(targets)
    if within(left, one_by_one(anatomy)):
        way = Layerwise(anatomy, examples())
        for layer in way:
            inside = within(left, [layer])
            left = [name for name in left if name not in inside]
            if inside:
                yield way.statistics(inside, kind, own)
            if not within(left, anatomy.layers):
                break
    if left:
        yield throughout(anatomy.model, examples(), left, kind, own)


def one_by_one(anatomy: Anatomy) -> list[str]:
    """The layers that are known and run one after another, each once."""
    if anatomy.family is None or any("*" in stack.layers for stack in anatomy.stacks.values()):
        return []
    return anatomy.layers
