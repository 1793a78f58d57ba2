"""How much what a model gives moves with what a linear layer gives: what ranks are spread by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.gathering import answered_tokens, valid_tokens
from cook.model.hooks import Hooks
from cook.model.linear import shape
from cook.model.measure import evaluating

AT_ONCE = 8
"""Examples whose activations are kept for one backward."""


def sensitivities(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], targets: Sequence[str], seed: int = 0
) -> dict[str, Tensor]:
    """The sum over tokens of how fast the model's output moves with each output of a layer, squared.

    With J the Jacobian of all numbers that the model gives for an example (its logits, or hidden states if it
    has none) by those that the layer gives for one token, this is the diagonal of `J^T J`, the Gauss-Newton
    matrix of their squared distance: one backward of `v . outputs`, v with standard normal numbers, has it as
    its expected square (M. F. Hutchinson 1989), so no labels are needed. What the model gives for padding
    does not count. In eval mode; the gradients of parameters stay as they are.

    Args:
        model: on the batches' device.
        batches: as the model takes them.
        targets: linear layers; one that runs several times counts with all its uses.
        seed: of v.

    Returns:
        By target, [out] in float32, a mean over examples.

    Raises:
        CookError: the model gives nothing that could move.
    """
    modules = {name: model.get_submodule(name) for name in targets}
    # The gradients of the weights are not needed, but nothing else comes to every layer.
    learned = [module.get_parameter("weight") for module in modules.values()]
    frozen = [each for each in learned if not each.requires_grad]
    found = {
        name: each.new_zeros(shape(modules[name])[0]).float()
        for name, each in zip(targets, learned, strict=True)
    }
    random, hooks, examples = torch.Generator().manual_seed(seed), Hooks(), 0
    try:
        for each in frozen:
            each.requires_grad_(True)
        for name, module in modules.items():
            hooks.forward(module, _adding(found[name]))
        with evaluating(model), torch.enable_grad():
            for batch in batches:
                for part in _parts(batch):
                    given, counted = _given(model, part)
                    drawn = torch.randn(given.shape, generator=random).to(given) * counted
                    torch.autograd.grad((drawn * given).sum(), learned, allow_unused=True)
                    examples += len(given)
    finally:
        hooks.close()
        for each in frozen:
            each.requires_grad_(False)
    return {name: total / max(1, examples) for name, total in found.items()}


def _adding(total: Tensor) -> Callable[..., None]:
    def slope(gradient: Tensor) -> None:
        total.add_(gradient.detach().flatten(0, -2).float().square().sum(0))

    def met(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(slope)

    return met


def _parts(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    size = len(next(iter(batch.values())))
    return [
        {name: value[start : start + AT_ONCE] for name, value in batch.items()}
        for start in range(0, size, AT_ONCE)
    ]


def _given(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the model gives, [examples, ...], and what of it counts, of a shape that multiplies it."""
    outputs: Any = model(**batch)
    given = next((outputs[name] for name in ("logits", "last_hidden_state") if name in outputs), None)
    if not isinstance(given, Tensor) or not given.requires_grad:
        raise CookError(
            "the model gives neither logits nor hidden states that its layers could move",
            hint="spread: false, and no budget",
        )
    decodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    valid = answered_tokens(batch) if decodes else valid_tokens(batch)
    if valid is None or given.shape[:2] != valid.shape:
        return given, torch.ones((), device=given.device)
    return given, valid.to(given).unflatten(1, (-1, *[1] * (given.ndim - 2)))
