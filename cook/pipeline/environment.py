"""Where a run happens: the accelerator, and what the report says of the machine."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, is_tensorboard_available

from cook.errors import CookError
from cook.recipe import Recipe
from cook.version import __version__

ENGINES = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
"""What parameters stay whole under: FSDP and DeepSpeed keep shards or copies that a mask does not reach."""

PATIENCE = datetime.timedelta(hours=12)
"""How long processes wait for one that prepares data or asks a teacher about it."""

TRACKER_PACKAGES = {"comet_ml": "comet-ml"}
"""Where a tracker's package is not called as the tracker is."""

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def accelerator(
    recipe: Recipe, log_folder: Path | None = None, *, device: torch.device | None = None
) -> Accelerator:
    """accelerate's view of device, precision and processes.

    Args:
        recipe: its train section counts, if it has one.
        log_folder: where trackers write.
        device: where a model is already; None takes the recipe's, or the best one there is.

    Raises:
        CookError: the recipe asks for what this machine has not, or fewer processes run than were asked for.
    """
    check_launch(os.environ)
    # accelerate keeps a process's first precision and device for good; a process may cook several recipes.
    AcceleratorState._reset_state(reset_partial_state=not _one_of_several())
    train, on_cpu = recipe.train, device is not None and device.type == "cpu"
    if train is None:
        return Accelerator(cpu=on_cpu)
    if train.device == "cuda" and (on_cpu or not torch.cuda.is_available()):
        found = "the model is on the CPU" if on_cpu else "torch finds no CUDA device here"
        raise recipe.error("train.device", found, "leave it out to take what there is")
    if train.track is not None:
        _check_tracker(recipe, train.track)
    made = Accelerator(
        mixed_precision=PRECISIONS[train.precision],
        # Left alone, accelerate takes processes of torchrun without a GPU for so many runs of one process.
        cpu=train.device == "cpu" or on_cpu or (_launched() > 1 and not torch.cuda.is_available()),
        log_with=train.track,
        project_dir=str(log_folder) if log_folder else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if made.distributed_type not in ENGINES:
        raise CookError(
            f"this run was launched with {made.distributed_type.value}, where masks would not hold",
            hint="launch plain data-parallel processes: accelerate launch --multi_gpu, or torchrun",
        )
    if train.precision == "fp16" and made.device.type == "cpu":
        # accelerate would train in float32 and say nothing.
        raise recipe.error("train.precision", "the CPU does not train in fp16", "use bf16 or fp32")
    return made


_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables that say how many processes there are, by torch's launcher or by one of MPI."""


def check_launch(variables: Mapping[str, str]) -> None:
    """Refuse a launch that asked for several processes and started one.

    `accelerate launch --cpu --num_processes 2` without MPI starts a single process. It then names an address
    for several processes to meet at (`MASTER_ADDR`), and nothing says how many they are.

    Args:
        variables: of the environment.

    Raises:
        CookError: it is such a launch.
    """
    launched = "ACCELERATE_USE_CPU" in variables and "ACCELERATE_MIXED_PRECISION" in variables
    if launched and "MASTER_ADDR" in variables and not any(name in variables for name in _SIZES):
        raise CookError(
            "accelerate launch was asked for several processes and started only one",
            where="accelerate launch",
            hint="start them with torchrun --nproc_per_node 2 -m cook run RECIPE; for a single process, leave"
            " out --num_processes and MASTER_ADDR",
        )


def _check_tracker(recipe: Recipe, name: str) -> None:
    """Refuse a tracker whose package is missing: accelerate would leave it out."""
    extra = "cook-compress[track]"
    if name == "tensorboard":
        there, package = is_tensorboard_available(), f"'{extra}'"
    else:
        there = name in map(str, get_available_trackers())
        package = TRACKER_PACKAGES.get(name, name)
    if not there:
        raise recipe.error("train.track", f"{name} is not installed", f"pip install {package}")


def start_tracker(accelerator: Accelerator, recipe: Recipe, folder: str) -> None:
    """Begin to log, into `folder` of the work folder for tensorboard, else under the output's name.

    Raises:
        CookError: the tracker refuses, for example because nobody is logged in.
    """
    track = recipe.train.track if recipe.train is not None else None
    if track is None:
        return
    try:
        accelerator.init_trackers(folder if track == "tensorboard" else Path(recipe.output.path).name)
    except Exception as failure:  # each tracker has errors of its own
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[-1]
        hint = f"set {track} up as its documentation says, or leave train.track out"
        raise recipe.error("train.track", f"{track} does not start: {reason}", hint) from failure


def _launched() -> int:
    """How many processes the launcher says it started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def _one_of_several() -> bool:
    """Whether this process has joined a group, which lasts as long as it does."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def describe(device: torch.device, *, seed: int | None, precision: str, processes: int = 1) -> dict[str, Any]:
    """The `environment` of a report."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or "cpu")
    return {
        "cook": __version__,
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
