"""Where a run happens, and that one run leaves nothing for the next in its process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from cook.errors import CookError
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


def launched(*options: str) -> dict[str, str]:
    """The environment that `accelerate launch` gives to the process that it starts."""
    given = launch_command_parser().parse_args([*options, "--mixed_precision", "no", "train.py"])
    args, *_ = _validate_launch_command(given)
    return prepare_simple_launcher_cmd_env(args)[1]


def test_a_launch_that_starts_fewer_processes_than_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CookError, match="several processes and started only one") as caught:
        environment.check_launch(launched("--cpu", "--num_processes", "2"))
    assert "torchrun" in str(caught.value.hint)
    for variables in (
        launched("--cpu", "--num_processes", "1"),
        {**launched("--cpu", "--num_processes", "2"), "OMPI_COMM_WORLD_SIZE": "2"},  # by mpirun
        {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "0"},  # torchrun
        {"MASTER_ADDR": "10.0.0.1"},  # a cluster's, without a launcher
        {},
    ):
        environment.check_launch(variables)


def test_a_run_looks_at_how_it_was_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"):
        monkeypatch.setenv(name, "no")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(CookError, match="started only one"):
        environment.accelerator(load_recipe({"version": 1}, partial=True))
