"""Checkpoints: what is saved is loaded, and what was damaged since is found and passed over."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from cook.errors import RunError
from cook.train import checkpoint, manifest
from tests.helpers.states import names, same, state


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


ENTRY = {"size": 1, "sha256": ""}


@pytest.mark.parametrize(
    "content",
    [
        {"version": 1, "step": 3},
        {"step": 3, "files": {}},
        {"version": 1, "step": 3, "files": [1]},
        {"version": 1, "step": 3, "files": {"model.pt": {}}},
        {"version": 1, "step": 3, "files": {"model.pt": "x"}},
        {"version": 1, "step": 3, "files": {"../model.pt": ENTRY}},
        {"version": 1, "step": 3, "files": {"/dev/zero": {**ENTRY, "size": 0}}},
    ],
)
def test_a_manifest_sealed_by_somebody_else(content: dict[str, Any], tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 3, {"model": {"a": 1}})
    sealed = {**content, "digest": manifest._seal(content)}
    (path / manifest.NAME).write_text(json.dumps(sealed))
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append) is None
    assert "moved to step-3.corrupt" in said[0]


def test_a_manifest_nested_without_end(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 3, {"model": {"a": 1}})
    (path / manifest.NAME).write_text("[" * 100_000)
    assert checkpoint.newest(tmp_path, lambda line: None) is None
