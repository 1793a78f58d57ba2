"""What several processes of one run agree on. With one process nothing is asked of anybody."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


def summed(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in each of them; NaN wherever one has NaN."""
    if accelerator.num_processes == 1:
        return values
    return torch.as_tensor(accelerator.reduce(values, "sum"))


def total(accelerator: Accelerator, count: int) -> int:
    """The sum of a number over all processes."""
    if accelerator.num_processes == 1:
        return count
    return int(summed(accelerator, torch.tensor(count, device=accelerator.device)))


def any_of(accelerator: Accelerator, flag: bool) -> bool:
    """Whether one process at least says so."""
    return total(accelerator, int(flag)) > 0
