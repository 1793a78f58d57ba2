"""Checks that finishing does not change a model's outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cook.errors import RunError
from cook.model.nn.integer import IntLinear
from cook.model.probe.measure import evaluating
from cook.model.tokens.id_map import TokenIdMap

FOLDED = 1e-3
"""The tolerance for outputs changed by finishing, relative to the largest one."""


@torch.no_grad()
def outputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output tensors of a model for a batch, in eval mode, by name."""
    cuda = [model.device] if model.device.type == "cuda" else []
    # Some models draw random numbers in every forward (ViT-MAE's patch mask): fix the seed.
    with evaluating(model), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(0)
        found = model(**batch)
    return {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}


def outputs_to_be(
    model: PreTrainedModel, batch: Mapping[str, Tensor], numbers: TokenIdMap | None
) -> dict[str, Tensor]:
    """The expected outputs of the finished model for a batch."""
    if numbers is None:
        return outputs(model, batch)
    return numbers.outputs(outputs(model, numbers.known(batch)))


@torch.no_grad()
def round_to(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Round float32 weights to the dtype of the file, so that measurements apply to the saved model."""
    if dtype in (None, torch.float32):
        return
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            scale = isinstance(module, IntLinear) and "scale" in name
            if parameter.is_floating_point() and not scale:
                parameter.copy_(parameter.to(dtype))


def check_folded(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], dtype: torch.dtype | None
) -> None:
    """Check that finishing has not changed the model's outputs."""
    allowed = FOLDED if dtype in (None, torch.float32) else 50 * torch.finfo(dtype).eps
    for name, was in before.items():
        same = torch.isclose(after[name].float(), was.float(), rtol=0.0, atol=0.0, equal_nan=True)
        if same.all():
            continue  # equal infinities and NaNs count as equal
        moved = float((after[name].float() - was.float())[~same].abs().max())
        if not moved <= allowed * max(1.0, float(was.float().nan_to_num(0.0, 0.0, 0.0).abs().max())):
            raise RunError(
                f"finishing moved the output {name!r} by {moved:.2g}, more than {allowed:g} of its size",
                hint="a pass did not fold what it trained; please report it with the recipe",
            )
