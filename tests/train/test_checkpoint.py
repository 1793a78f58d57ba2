"""Checkpoints under everything that can happen to them: damage, a full disk, a kill at any moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections import OrderedDict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from cook.errors import RunError
from cook.train import checkpoint, manifest


def state(step: int, size: int = 300) -> dict[str, Any]:
    """A state that can be told from `step` alone, so that a reader can check every number of it."""
    weight = torch.randn(size, generator=torch.Generator().manual_seed(step))
    return {
        "model": {"a.weight": weight, "a.bias": weight[:3].to(torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "groups": [{"lr": 0.1, "p": [0]}]},
        "run": {"step": step, "best": None, "done": False, "betas": (0.9, 0.999), "name": "x"},
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "new" / "checkpoints", 7, state(7))
    assert path.name == "step-7"
    assert checkpoint.newest(path.parent) == path
    assert checkpoint.step_of(path) == 7
    assert same(checkpoint.load(path), state(7))


def test_foreign_containers_and_scalars_become_plain(tmp_path: Path) -> None:
    given = {"part": OrderedDict(score=numpy.float64(0.1), weight=torch.nn.Parameter(torch.ones(2)))}
    loaded = checkpoint.load(checkpoint.save(tmp_path, 1, given))
    assert same(loaded, {"part": {"score": 0.1, "weight": torch.ones(2)}})


def test_what_cannot_be_read_back_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"run\.seeds\[1\] is a ndarray"):
        checkpoint.save(tmp_path, 1, {"run": {"seeds": [1, numpy.ones(2)]}})
    with pytest.raises(ValueError, match="cannot name a part"):
        checkpoint.save(tmp_path, 1, {"../model": {}})
    with pytest.raises(ValueError, match="keep is 0"):
        checkpoint.save(tmp_path, 1, {}, keep=0)
    assert names(tmp_path) == []


def test_the_newest_stay_in_order_of_number(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        checkpoint.save(tmp_path, step, state(step))
        assert checkpoint.newest(tmp_path) == tmp_path / f"step-{step}"
    assert names(tmp_path) == ["step-10", "step-11"]
    checkpoint.save(tmp_path, 100, state(100), keep=1)
    assert names(tmp_path) == ["step-100"]


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, state(5))
    checkpoint.save(tmp_path, 5, state(6))
    assert names(tmp_path) == ["step-5"]
    assert same(checkpoint.load(tmp_path / "step-5"), state(6))


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") is None
    (tmp_path / "step-3.tmp").mkdir()
    (tmp_path / "step-x").mkdir()
    assert checkpoint.newest(tmp_path) is None


def test_leftovers_are_swept_and_a_half_replaced_one_comes_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, state(5)).rename(tmp_path / "step-5.old")
    (tmp_path / "step-6.tmp").mkdir()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-5"
    checkpoint.save(tmp_path, 7, state(7))
    assert names(tmp_path) == ["step-5", "step-7"]


def test_clear_takes_all_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, state(5))
    for other in ("step-4.corrupt", "step-6.tmp", "steps", "step-by-step"):
        (tmp_path / other).mkdir()
    checkpoint.clear(tmp_path)
    assert names(tmp_path) == ["step-by-step", "steps"]


def truncated(path: Path) -> None:
    with (path / "model.pt").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 1)


def flipped(path: Path) -> None:
    content = bytearray((path / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "model.pt").write_bytes(content)


def part_missing(path: Path) -> None:
    (path / "optimizer.pt").unlink()


def manifest_missing(path: Path) -> None:
    (path / manifest.NAME).unlink()


def manifest_truncated(path: Path) -> None:
    (path / manifest.NAME).write_text((path / manifest.NAME).read_text()[:-9])


def manifest_binary(path: Path) -> None:
    (path / manifest.NAME).write_bytes(b"\xff\xfe\x00")


def manifest_forgets_a_part(path: Path) -> None:
    content = json.loads((path / manifest.NAME).read_text())
    del content["files"]["optimizer.pt"]
    (path / manifest.NAME).write_text(json.dumps(content))


def manifest_is_a_list(path: Path) -> None:
    (path / manifest.NAME).write_text("[]")


def of_another_step(path: Path) -> None:
    twin = checkpoint.save(path.parent / "elsewhere", 1, state(1))
    for file in twin.iterdir():
        file.replace(path / file.name)


DAMAGE = {
    truncated: "model.pt has",
    flipped: "model.pt has changed",
    part_missing: "optimizer.pt is missing",
    manifest_missing: "manifest.json is missing",
    manifest_truncated: "manifest.json: ",
    manifest_binary: "manifest.json: ",
    manifest_forgets_a_part: "manifest.json: was altered",
    manifest_is_a_list: "manifest.json: was altered",
    of_another_step: "manifest.json is of step 1",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_one_is_moved_aside_and_the_one_before_is_used(damage: Any, tmp_path: Path) -> None:
    before = checkpoint.save(tmp_path, 10, state(10))
    damage(checkpoint.save(tmp_path, 20, state(20)))
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append) == before
    assert len(said) == 1
    assert DAMAGE[damage] in said[0]
    assert (tmp_path / "step-20.corrupt").is_dir()
    assert same(checkpoint.load(before), state(10))


def test_all_damaged_is_nothing_to_resume(tmp_path: Path) -> None:
    for step in (1, 2):
        flipped(checkpoint.save(tmp_path, step, state(step)))
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append) is None
    assert len(said) == 2


def test_loading_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read the checkpoint.*manifest\.json"):
        checkpoint.load(tmp_path)
    path = checkpoint.save(tmp_path, 1, state(1))
    truncated(path)
    with pytest.raises(RunError, match="cannot read the checkpoint"):
        checkpoint.load(path)


# What follows needs a process of its own: one that may be killed, or that may not write much.

START = multiprocessing.get_context("forkserver")  # imports torch once, then forks for each child
START.set_forkserver_preload([__name__])


def save_with_little_room(folder: Path, limit: int, answer: Connection) -> None:
    """Save under a limit on the size of a file: the kernel refuses just as it does when a disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        checkpoint.save(folder, 2, state(2, 100_000))
    except RunError as error:
        answer.send((error.exit_code, str(error)))
    else:
        answer.send((0, ""))


@pytest.mark.parametrize("limit", [100, 250_000, 399_000])
def test_a_full_disk_leaves_the_one_before_intact(limit: int, tmp_path: Path) -> None:
    before = checkpoint.save(tmp_path, 1, state(1))
    here, there = START.Pipe()
    child = START.Process(target=save_with_little_room, args=(tmp_path, limit, there))
    child.start()
    assert here.poll(60)
    code, text = here.recv()
    child.join()
    assert code == 1
    assert str(tmp_path) in text
    assert "the checkpoint of step 2" in text
    assert "step-1 is intact" in text
    assert names(tmp_path) == ["step-1"]
    assert checkpoint.newest(tmp_path) == before


def test_a_full_disk_at_the_first_save(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="there is none before it"):
        checkpoint.save(tmp_path / "taken", 1, state(1))


def save_for_ever(folder: Path, answer: Connection) -> None:
    for step in range(1, 1_000_000):
        checkpoint.save(folder, step, state(step, 100_000))
        answer.send(step)


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_a_random_moment_of_a_save(seed: int, tmp_path: Path) -> None:
    here, there = START.Pipe()
    child = START.Process(target=save_for_ever, args=(tmp_path, there))
    child.start()
    assert here.poll(60)
    time.sleep(random.Random(seed).uniform(0.0, 0.1))
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    promised = 0
    while here.poll():
        promised = here.recv()
    survives(tmp_path, promised)


def save_and_die(folder: Path, survived: int) -> None:
    """Save step 2 twice over, and be killed at the call after `survived` ones that reach the disk."""
    calls = 0

    def counted(call: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            if calls == survived:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return call(*arguments, **options)

        return wrapper

    for name in ("fsync", "rename", "mkdir", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    checkpoint.save(folder, 2, state(2), keep=1)
    checkpoint.save(folder, 2, state(2), keep=1)


def test_a_kill_at_every_call_that_reaches_the_disk(tmp_path: Path) -> None:
    code: int | None = -signal.SIGKILL
    survived = 0
    while code == -signal.SIGKILL:
        folder = tmp_path / str(survived)
        checkpoint.save(folder, 1, state(1))
        child = START.Process(target=save_and_die, args=(folder, survived))
        child.start()
        child.join()
        code = child.exitcode
        survives(folder, 1)
        survived += 1
    assert code == 0
    assert survived > 20


def survives(folder: Path, promised: int) -> None:
    """At least the last step that `save` returned for is there, whole; and saving goes on."""
    said: list[str] = []
    found = checkpoint.newest(folder, said.append)
    assert found is not None
    step = checkpoint.step_of(found)
    assert step >= promised
    assert said == []
    loaded = checkpoint.load(found)
    assert same(loaded, state(step, len(loaded["model"]["a.weight"])))
    checkpoint.save(folder, step + 1, state(step + 1))
    assert not [name for name in names(folder) if name.endswith((".tmp", ".old"))]
