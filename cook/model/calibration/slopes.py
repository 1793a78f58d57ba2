"""Gradients with respect to the outputs of linear layers, without weight gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cook.model.nn.hooks import Hooks
from cook.model.probe.measure import evaluating

OnOutput = Callable[[str, Tensor, Tensor], None]
"""Called with a layer's name, its inputs and its output, on which gradient hooks can be registered."""


@contextmanager
def slopes(model: nn.Module, names: Sequence[str], on_output: OnOutput) -> Iterator[Callable[[Tensor], None]]:
    """In the context, forwards pass each layer's output to `on_output`; yields a function for the backward.

    The model is in eval mode and parameters need no gradient: the graph starts at the first layers and holds
    activations only.

    Args:
        names: linear layers.

    Yields:
        A function that backpropagates a scalar from one forward, so that hooks on outputs run.
    """
    first: list[Tensor] = []
    hooks, learned = Hooks(), [each for each in model.parameters() if each.requires_grad]

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                first.append(output.detach().requires_grad_())
                output = first[-1].clone()  # the output may be modified in place
            on_output(name, inputs[0].detach(), output)
            return output

        return after

    def back(value: Tensor) -> None:
        torch.autograd.grad(value, first, allow_unused=True)
        first.clear()

    try:
        for each in learned:
            each.requires_grad_(False)
        for name in names:
            hooks.forward(model.get_submodule(name), hook(name))
        with evaluating(model), torch.enable_grad():
            yield back
    finally:
        hooks.close()
        for each in learned:
            each.requires_grad_(True)
