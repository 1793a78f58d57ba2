"""Where a run happens: the accelerator, and what the report says of the machine."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import cook

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def accelerator(
    train: Any, log_folder: Path | None = None, *, device: torch.device | None = None
) -> Accelerator:
    """accelerate's view of device, precision and processes.

    Args:
        train: the recipe's section, or None.
        log_folder: where trackers write.
        device: where a model is already; None takes the recipe's, or the best one there is.
    """
    # accelerate keeps the first precision of a process for good; a process may cook several recipes.
    AcceleratorState._reset_state()
    if train is None:
        return Accelerator(cpu=device is not None and device.type == "cpu")
    return Accelerator(
        mixed_precision=PRECISIONS[train.precision],
        cpu=train.device == "cpu" or (device is not None and device.type == "cpu"),
        log_with=train.track,
        project_dir=str(log_folder) if log_folder else None,
    )


def describe(device: torch.device, *, seed: int | None, precision: str, processes: int = 1) -> dict[str, Any]:
    """The `environment` of a report."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or "cpu")
    return {
        "cook": cook.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "platform": platform.platform(),
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "precision": precision,
        "seed": seed,
    }


def now() -> str:
    """The time in ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
