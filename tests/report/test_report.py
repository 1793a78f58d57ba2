"""report.json: written whole or not at all, read back with every key, refused when broken."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from cook.errors import CookError, RunError
from cook.report import Report
from tests.report.example import report


def test_the_layout_is_the_one_that_others_read() -> None:
    value = report().to_dict()
    assert list(value) == [
        *("version", "cook", "recipe", "created", "model", "passes", "train", "reload", "environment")
    ]
    assert value["version"] == 1
    for place in (value["model"], *value["passes"]):
        for end in ("before", "after"):
            assert {"parameters", "zeros", "sparsity", "bytes", "macs", "metrics", "removed"} <= set(
                place[end]
            )
    states = value["passes"][1]["states"]
    assert [state["when"] for state in states] == ["attached", "start", "end"]
    assert states[2]["step"] == 540
    assert "when" not in value["model"]["before"]
    assert value["passes"][1]["window"] == [90, 539]
    assert value["reload"]["max_abs_difference"] == 2.1e-6


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    path = report().write(tmp_path / "report.json")
    assert Report.read(path) == report()
    assert Report.read(tmp_path) == report()
    assert os.listdir(tmp_path) == ["report.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_round_trip_of_what_was_neither_trained_nor_saved() -> None:
    bare = report()
    bare.train = bare.reload = bare.model.latency = bare.passes[0].window = None
    bare.model.before.bytes = bare.model.before.macs = None
    assert Report.from_dict(bare.to_dict()) == bare


def test_unknown_keys_survive() -> None:
    value = report().to_dict()
    value["from_the_future"] = {"a": [1, {"b": None}]}
    value["extra"] = 3
    value["model"]["colour"] = "blue"
    value["model"]["after"]["energy"] = 4.5
    value["passes"][0]["mood"] = "good"
    value["passes"][1]["states"][0]["tail"] = 1
    value["reload"]["host"] = "other"
    value["train"]["oddity"] = 1
    assert Report.from_dict(value).to_dict() == value


def test_values_from_other_libraries_become_json() -> None:
    built = report()
    built.passes[0].options = MappingProxyType({"layers": (1, 2), "inner": MappingProxyType({"a": 1})})  # type: ignore[assignment]
    built.model.after.metrics = {"accuracy": np.float32(0.5), "count": np.int64(3), "bad": float("nan")}
    value = json.loads(json.dumps(built.to_dict(), allow_nan=False))
    assert value["passes"][0]["options"] == {"layers": [1, 2], "inner": {"a": 1}}
    assert value["model"]["after"]["metrics"] == {"accuracy": 0.5, "count": 3, "bad": None}
    assert Report.from_dict(value).model.after.metrics["bad"] is None


def test_to_dict_is_a_copy() -> None:
    built = report()
    built.to_dict()["environment"]["seed"] = 99
    assert built.environment["seed"] == 0


def _without(*path: str | int) -> dict[str, Any]:
    value: Any = report().to_dict()
    place = value
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return value


def _with(new: object, *path: str | int) -> dict[str, Any]:
    value: Any = report().to_dict()
    place = value
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = new
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "its top"),
        ({}, "required"),
        (_without("model"), "'model' is a required property"),
        (_without("passes", 0, "before", "zeros"), "passes[0].before"),
        (_with("many", "model", "after", "zeros"), "model.after.zeros"),
        (_with(-1, "model", "after", "parameters"), "model.after.parameters"),
        (_with(1.5, "model", "after", "sparsity"), "model.after.sparsity"),
        (_with(True, "model", "after", "bytes"), "model.after.bytes"),
        (_with("good", "model", "after", "metrics", "accuracy"), "model.after.metrics.accuracy"),
        (_with([1], "passes", 0, "window"), "passes[0].window"),
        (_with({}, "passes"), "passes"),
        (_with("x" * 9999, "passes", 0, "facts"), "passes[0].facts"),
        (_with(0, "version"), "version"),
        (_with(None, "environment"), "environment"),
        (_with({}, "model", "latency"), "model.latency"),
        (_with(0, "model", "latency", "before_ms"), "model.latency"),
    ],
)
def test_a_broken_report_is_one_error(value: Any, words: str) -> None:
    with pytest.raises(CookError) as caught:
        Report.from_dict(value, where="out/report.json")
    assert words in str(caught.value)
    assert str(caught.value).startswith("out/report.json: ")
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code == 2


def test_a_newer_report_says_so() -> None:
    with pytest.raises(CookError, match="version 2; this cook reads version 1") as caught:
        Report.from_dict(_with(2, "version"))
    assert "pip install --upgrade" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "not json", '{"version": 1'])
def test_a_file_that_is_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(CookError, match="is not JSON"):
        Report.read(tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(CookError, match="is not JSON"):
        Report.read(tmp_path)


def test_no_report_there(tmp_path: Path) -> None:
    with pytest.raises(CookError, match="there is no report at"):
        Report.read(tmp_path)
    with pytest.raises(CookError, match="there is no report at"):
        Report.read(tmp_path / "absent")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = report().write(tmp_path / "report.json")
    old = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        report().write(path)
    assert caught.value.exit_code == 1
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["report.json"]


def test_writing_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        report().write(tmp_path / "absent" / "report.json")
