"""Where a run happens, and that one run leaves nothing for the next in its process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from accelerate.state import PartialState

from cook.pipeline import environment
from cook.recipe import load_recipe


def test_each_recipe_of_a_process_has_its_own_device_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**train: str) -> tuple[str, str]:
        recipe = load_recipe({"version": 1, "train": {"steps": 1, **train}}, partial=True)
        accelerator = environment.accelerator(recipe)
        return accelerator.device.type, accelerator.mixed_precision

    with monkeypatch.context() as patch:
        # A machine with a device that is not the CPU.
        patch.setattr(PartialState, "default_device", property(lambda self: torch.device("meta")))
        assert made(precision="bf16") == ("meta", "bf16")
        assert made(device="cpu") == ("cpu", "no")
        assert made() == ("meta", "no")
    assert made() == (PartialState().default_device.type, "no")


def test_processes_without_a_gpu_are_one_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun accelerate would give each its own run, and all would write one folder."""

    def made(**options: Any) -> Any:
        asked.append(options["cpu"])
        return SimpleNamespace(distributed_type=DistributedType.NO, device=torch.device("cpu"))

    asked: list[bool] = []
    monkeypatch.setattr(environment, "Accelerator", made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for count in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", count)
        environment.accelerator(load_recipe({"version": 1, "train": {"steps": 1}}, partial=True))
    assert asked == [False, True]
