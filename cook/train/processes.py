"""Reductions over the processes of a run; without communication if there is only one."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


def summed(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in each of them; NaN propagates."""
    if accelerator.num_processes == 1:
        return values
    return torch.as_tensor(accelerator.reduce(values, "sum"))


def total(accelerator: Accelerator, count: int) -> int:
    """The sum of an integer over all processes."""
    if accelerator.num_processes == 1:
        return count
    return int(summed(accelerator, torch.tensor(count, device=accelerator.device)))


def any_of(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in at least one process."""
    return total(accelerator, int(flag)) > 0
