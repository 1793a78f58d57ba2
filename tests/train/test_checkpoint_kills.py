"""Checkpoints when the disk is full, and when the process is killed at any moment of a save."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from cook.errors import RunError
from cook.train import checkpoint
from tests.helpers.states import names, same, state

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
