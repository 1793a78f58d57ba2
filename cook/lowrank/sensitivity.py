"""How much what a model gives moves with what a linear layer gives: what ranks are spread by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.calibration.input_statistics import output_tokens, valid_tokens
from cook.model.calibration.slopes import slopes
from cook.model.probe.batch import examples_in, take

AT_ONCE = 256
"""Tokens whose activations are kept for one backward, more only in one longer example."""
TOKENS = 4
"""For each direction of a layer, that tell well enough what it is worth beside others."""


def sensitivities(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], targets: Sequence[str], seed: int = 0
) -> dict[str, Tensor]:
    """The sum over tokens of how fast the model's output moves with each output of a layer, squared.

    With J the Jacobian of all numbers that the model gives for an example (its logits, or hidden states if it
    has none) by those that the layer gives for one token, this is the diagonal of `J^T J`, the Gauss-Newton
    matrix of their squared distance: one backward of `v . outputs`, v with standard normal numbers, has it as
    its expected square (M. F. Hutchinson 1989), so no labels are needed. What the model gives for padding
    does not count. In eval mode.

    Args:
        model: on the batches' device.
        batches: as the model takes them.
        targets: linear layers; one that runs several times counts with all its uses.
        seed: of v.

    Returns:
        By target that is run, [out] in float32, a mean over examples.

    Raises:
        CookError: the model gives nothing that could move.
    """
    found: dict[str, Tensor] = {}

    def on_output(name: str, _: Tensor, output: Tensor) -> None:
        if name not in found:
            found[name] = output.new_zeros(output.shape[-1], dtype=torch.float32).detach()

        def slope(gradient: Tensor) -> None:
            found[name].add_(gradient.detach().flatten(0, -2).float().square().sum(0))

        output.register_hook(slope)

    random, examples = torch.Generator().manual_seed(seed), 0
    with slopes(model, targets, on_output) as back:
        for batch in batches:
            for part in _parts(batch):
                several = _given(model, part)
                drawn = [torch.randn(given.shape, generator=random).to(given) for given, _ in several]
                pairs = zip(drawn, several, strict=True)
                back(torch.stack([(each * given * counts).sum() for each, (given, counts) in pairs]).sum())
                examples += len(several[0][0])
    return {name: total / examples for name, total in found.items()}


def until(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], tokens: int
) -> Iterator[Mapping[str, Tensor]]:
    """The first batches that hold so many tokens of a text, and of its answer; all where nobody can tell."""
    found = 0
    for batch in batches:
        if found >= tokens:
            return
        yield batch
        whole = batch["input_ids"].numel() if "input_ids" in batch else 0
        masks = valid_tokens(batch), output_tokens(model, batch)
        found += min(whole if mask is None else int(mask.sum()) for mask in masks)


def _parts(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    count = examples_in(batch)
    some = max(1, AT_ONCE * count // batch["input_ids"].numel()) if "input_ids" in batch else 1
    return [take(batch, slice(start, start + some)) for start in range(0, count, some)]


def _given(model: nn.Module, batch: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """All logits of a model, or its last states, [examples, ...]; each with what multiplies what counts."""
    outputs: Any = model(**batch)
    names = [name for name in outputs if name.endswith("logits")] or ["last_hidden_state", "pooler_output"]
    found = {name: outputs[name] for name in names if name in outputs}
    moved = {name: each for name, each in found.items() if isinstance(each, Tensor) and each.requires_grad}
    if not moved:
        raise CookError(
            "the model gives neither logits nor hidden states that its layers could move",
            hint="spread: false, and no budget",
        )
    valid = output_tokens(model, batch)
    return [(each, _counting(name, each, valid)) for name, each in moved.items()]


def _counting(name: str, given: Tensor, valid: Tensor | None) -> Tensor:
    by_token = given.ndim > 2 or name in ("start_logits", "end_logits")
    if valid is None or not by_token or given.shape[:2] != valid.shape:
        return given.new_ones(())
    return valid.to(given).unflatten(1, (-1, *[1] * (given.ndim - 2)))
