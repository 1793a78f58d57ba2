"""Statistics of any linear layers of a model: layer by layer if possible, else by whole forwards."""

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
    """Statistics from whole forwards: for linears outside of layers, and layers that run several times.

    Raises:
        CookError: there are no examples, or a target is not run.
    """
    state, hooks = InputStatistics(kind, own or {}), Hooks()
    valid: Tensor | None = None
    source: tuple[int, Tensor | None] = 0, None

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            del state.added[:-1]  # modules that share an input tensor run consecutively
            # Decoder modules that read the encoder's output are recognised by their number of tokens.
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
                # Modules outside of layers read the layers' outputs.
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
    """Yield the statistics of the targets of one layer at a time; the caller may change them in between.

    Layers that run several times are yielded as one group; targets outside of layers come last.

    Args:
        examples: returns the same batches at every call.

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
    """The layers, if known and run one after another, each once."""
    if anatomy.family is None or any("*" in stack.layers for stack in anatomy.stacks.values()):
        return []
    return anatomy.layers
