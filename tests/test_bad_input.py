"""What bad input gets: one screen that names the place and the remedy, and no training before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cook.cli import main
from cook.train import loop
from tests.helpers import tiny
from tests.helpers.bad_recipes import RECIPE, REFUSED, passes, section


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and tables: good ones, and each bad one that the tests below name."""
    root = tmp_path_factory.mktemp("resources")
    tiny.folder(root / "bert")
    tiny.table(root / "train.tsv", 32)
    tiny.table(root / "val.tsv", 16, seed=1)
    (root / "three.tsv").write_text("sentence\tlabel\ngood film\t0\nbad film\t2\n")
    (root / "empty.tsv").write_text("sentence\tlabel\n")
    (root / "teachers").mkdir()
    swapped = tiny.model("bert")
    swapped.config.id2label, swapped.config.label2id = {0: "positive", 1: "negative"}, None
    swapped.config.label2id = {"positive": 0, "negative": 1}
    swapped.save_pretrained(root / "teachers" / "labels")
    tiny.tokenizer().save_pretrained(root / "teachers" / "labels")
    tokenizer = tiny.folder(root / "teachers" / "tokens") / "tokenizer.json"
    value = json.loads(tokenizer.read_text())
    words = value["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    tokenizer.write_text(json.dumps(value))
    for name in ("damaged", "gptq", "unconfigured"):
        tiny.folder(root / name)
    weights = root / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    config = root / "gptq" / "config.json"
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **quantised}))
    (root / "unconfigured" / "config.json").write_text('{"model_type": ')
    (root / "taken").mkdir()
    (root / "taken" / "notes.txt").write_text("mine")
    first = {**RECIPE, "model": {"recipe": "second.yaml", "task": "text-classification"}}
    second = {**RECIPE, "model": {"recipe": "first.yaml", "task": "text-classification"}}
    (root / "first.yaml").write_text(yaml.safe_dump(first))
    (root / "second.yaml").write_text(yaml.safe_dump(second))
    return root


@dataclass(frozen=True)
class Screen:
    """What the command said and how it ended."""

    code: int
    text: str


Cook = Callable[..., Screen]


@pytest.fixture
def cook(
    resources: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Cook:
    """Run a recipe that lies in the resources, by the command; a first step of training fails the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("training began")

    def call(
        recipe: Mapping[str, Any] | str, *options: str, verb: str = "run", trains: bool = False
    ) -> Screen:
        file = resources / "recipe.yaml"
        file.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(dict(recipe), sort_keys=False))
        if not trains:
            monkeypatch.setattr(loop.Loop, "_update", refuse)
        quiet = ["--quiet"] if verb == "run" else []
        code = main([verb, str(file), *quiet, "--set", f"output.path={tmp_path / 'small'}", *options])
        out, text = capsys.readouterr()
        assert out == ""
        assert text.startswith("error: ")
        assert "Traceback" not in text
        assert len(text.splitlines()) < 25
        assert not (tmp_path / "small").exists()
        return Screen(code, text)

    return call


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_before_training(cook: Cook, case: str) -> None:
    recipe, words = REFUSED[case]
    screen = cook(recipe)
    assert screen.code == 2
    for word in words:
        assert word in screen.text


def test_all_mistakes_are_told_at_once(cook: Cook) -> None:
    recipe = {**section("train", learning_rat=1, batch_size=0), "model": {"path": "./bart"}}
    text = cook(recipe, verb="validate").text
    for word in ("train.learning_rat", "train.batch_size", "model.path", "model.task"):
        assert word in text


def test_plan_finds_what_concerns_the_model(cook: Cook) -> None:
    for case in ("a target without a match", "a folder that is no model", "recipes in a circle"):
        recipe, words = REFUSED[case]
        screen = cook(recipe, verb="plan")
        assert screen.code == 2
        assert words[0] in screen.text


def test_an_unreadable_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, words in ((tmp_path / "absent.yaml", "absent.yaml"), (tmp_path, "folder")):
        assert main(["run", str(path)]) == 2
        assert words in capsys.readouterr().err


def test_an_override_is_named_as_the_place(cook: Cook) -> None:
    text = cook(RECIPE, "--set", "train.steps=none").text
    assert "--set train.steps=none" in text
    assert cook(RECIPE, "--set", "passes[prune.wieghts].sparsity=0.1").code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(cook: Cook) -> None:
    assert "train.device: torch finds no CUDA device here" in cook(section("train", device="cuda")).text


def test_a_tracker_that_is_not_installed(cook: Cook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cook.pipeline.environment.is_tensorboard_available", lambda: False)
    assert "cook-compress[track]" in cook(section("train", track="tensorboard")).text


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("comet_ml", "comet-ml")])
def test_other_trackers_name_their_package(
    cook: Cook, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("cook.pipeline.environment.get_available_trackers", list)
    text = cook(section("train", track=name)).text
    assert f"train.track: {name} is not installed" in text
    assert f"pip install {package}" in text


def test_an_output_that_is_taken(resources: Path, cook: Cook) -> None:
    taken, file = resources / "taken", resources / "val.tsv"
    text = cook(RECIPE, "--set", f"output.path={taken}").text
    assert "--set output.path=" in text
    assert "the folder exists already" in text
    assert "--force" in text
    text = cook(RECIPE, "--force", "--set", f"output.path={taken}").text
    assert "holds no model" in text
    assert (taken / "notes.txt").read_text() == "mine"
    text = cook(RECIPE, "--force", "--set", f"output.path={file}").text
    assert "there is a file where the folder should go" in text
    assert "no folder can be made" in cook(RECIPE, "--set", f"output.path={file / 'small'}").text


def test_a_loss_that_is_not_finite(resources: Path, tmp_path: Path, cook: Cook) -> None:
    screen = cook(section("train", learning_rate=1e30, steps=4, save_every=1), trains=True)
    assert screen.code == 1
    assert "the loss term 'task' is NaN at step 1 of 4" in screen.text
    assert "train.learning_rate" in screen.text
    assert [path.name for path in (tmp_path / ".small.cook" / "checkpoints").iterdir()] == ["step-1"]


STARVED = """
import resource, sys
import torch, datasets, sklearn.metrics
from cook.cli import main
from cook.train.loop import Loop
run = Loop.run
def starved(loop):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 64_000_000, -1))
    run(loop)
Loop.run = starved
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much is in use is not known")
def test_memory_runs_out(resources: Path, tmp_path: Path) -> None:
    tiny.table(resources / "long.tsv", 6000)
    recipe = passes(**section("data", train="long.tsv"))
    recipe["train"] = {"steps": 1, "batch_size": 6000, "accumulate": 2}
    recipe["output"] = {"path": str(tmp_path / "small")}
    (resources / "hungry.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-c", STARVED, "run", str(resources / "hungry.yaml"), "--quiet"]
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: out of memory with micro-batches of 3000 examples\n")
    assert "set train.accumulate: 4: the same batch_size 6000 in micro-batches of 1500" in done.stderr
    assert not (tmp_path / "small").exists()


def test_memory_runs_out_in_evaluation(cook: Cook, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: Any, **__: Any) -> None:
        torch.empty(1 << 60, dtype=torch.int8)

    monkeypatch.setattr("cook.pipeline.execute.evaluate", hungry)
    screen = cook(section("eval", batch_size=48))
    assert screen.code == 1
    assert "out of memory while evaluating 48 examples at a time" in screen.text
    assert "eval.batch_size" in screen.text


def test_a_folder_to_evaluate_or_report_on(resources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (resources / "good.yaml").write_text(yaml.safe_dump(RECIPE))
    for arguments, words in (
        (["eval", str(resources / "bert")], "there is no recipe.yaml in the folder"),
        (
            ["eval", str(resources / "teachers"), "--recipe", str(resources / "good.yaml")],
            "is not a model folder",
        ),
        (["report", str(resources / "bert")], "there is no report"),
        (["passes", "prune.wieghts"], "did you mean 'prune.weights'?"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
