"""AdamW with weight-decay groups, and the learning rate schedule."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups: matrices are decayed, vectors (biases, norms, scales) are not.

    Frozen parameters are excluded. The order is the module's, so that optimizer states can be resumed.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() >= 2]
    vectors = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    fused: bool = True,
) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the groups of `decay_groups`.

    Args:
        fused: one kernel for all parameters. Not with a gradient scaler: a fused step always runs and is
            skipped inside the kernel, which cannot be observed.
    """
    groups = decay_groups(module, weight_decay)
    return AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=fused)


def share_of_rate(step: int, total: int, warmup: int, schedule: str) -> float:
    """The learning rate factor at `step` (from 0): increases from 0 to 1 in the warm-up, then decays.

    linear and cosine decay to 0 at `total`, constant stays at 1.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"no schedule {schedule!r}; there are linear, cosine and constant")


def scheduler(optimizer: Optimizer, *, total: int, warmup: int = 0, schedule: str = "linear") -> LambdaLR:
    """The schedule of `share_of_rate`, to be stepped once after each optimizer step."""
    return LambdaLR(optimizer, lambda step: share_of_rate(step, total, warmup, schedule))
