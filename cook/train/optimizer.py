"""AdamW with its weight-decay groups, and the learning rate's schedule."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups: matrices decay, vectors (biases, norms, scales) do not.

    Frozen parameters are left out. Order follows the module's, so optimizer states can be resumed.
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
    """Decoupled weight decay (Loshchilov and Hutter 2019) over the groups above.

    Args:
        fused: one kernel for all parameters. Not beside a gradient scaler: a fused step is always made
            and skips inside of the kernel, where nobody learns of it.
    """
    groups = decay_groups(module, weight_decay)
    return AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=fused)


def share_of_rate(step: int, total: int, warmup: int, schedule: str) -> float:
    """What the learning rate is multiplied with at `step` (from 0): 0 to 1 over the warm-up, then down.

    linear reaches 0 at `total`, cosine too, constant stays at 1.
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
    """The schedule above, to be stepped once after each optimizer step."""
    return LambdaLR(optimizer, lambda step: share_of_rate(step, total, warmup, schedule))
