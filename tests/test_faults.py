"""What a run survives: kills, signals, damaged checkpoints, NaN, a full disk, and its own user."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cook.train import checkpoint
from tests.helpers import tiny
from tests.helpers.forks import Fault, Forks
from tests.helpers.server import Done

RECIPE = """\
version: 1
model: {path: ./model, task: text-classification}
teacher: {path: ./teacher}
data: {train: ./train.tsv, validation: ./validation.tsv, text: sentence}
train: {steps: 10, batch_size: 8, learning_rate: 0.01, save_every: 2, device: cpu}
eval: {latency: false}
passes:
  - distill.logits: {temperature: 2}
  - prune.weights: {sparsity: 0.5, start: 1, end: 7}
  - quant.qat: {observer: moving, start: 3}
output: {path: ./out}
"""
STEPS = 10
FSYNCS = 7
"""Of one checkpoint: four parts, the manifest, two folders."""
POISON = tiny.WORDS[-1]
"""A word that no table holds."""


class Bench:
    """A recipe and its inputs in one folder; each test has an output of its own."""

    def __init__(self, root: Path, forks: Forks):
        self.root, self.forks = root, forks
        self.recipe = root / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        tiny.folder(root / "model")
        tiny.folder(root / "teacher", seed=1)
        tiny.table(root / "train.tsv", 32, rest=tiny.WORDS[8:-1])
        tiny.table(root / "validation.tsv", 8, seed=1, rest=tiny.WORDS[8:-1])

    def run(self, name: str, *argv: str, fault: Fault | None = None) -> Done:
        """`cook run` into the output `name`."""
        output = f"output.path={self.root / name}"
        return self.forks.cook("run", self.recipe, "--set", output, *argv, fault=fault)

    def checkpoints(self, name: str) -> Path:
        return self.root / f".{name}.cook" / "checkpoints"

    def steps(self, name: str) -> list[str]:
        """What lies among the checkpoints of an output."""
        return sorted(path.name for path in self.checkpoints(name).iterdir())

    def same(self, one: str, other: str) -> None:
        """Two outputs hold the same weights, and their reports tell of the same states and losses."""
        read = [(self.root / name / "model.safetensors").read_bytes() for name in (one, other)]
        assert read[0] == read[1]
        texts = [(self.root / name / "report.json").read_text() for name in (one, other)]
        told: list[Any] = [json.loads(text) for text in texts]
        for report in told:
            report["train"].pop("seconds")
        assert told[0]["train"] == told[1]["train"]
        assert told[0]["passes"] == told[1]["passes"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("bench")
        patch.setenv("COOK_CACHE", str(root / "cache"))
        with Forks() as forks:
            yield Bench(root, forks)


@pytest.fixture(scope="module")
def whole(bench: Bench) -> str:
    """The output of the run that nothing happened to; an ordinary process, and no fork."""
    output = f"output.path={bench.root / 'whole'}"
    command = [sys.executable, "-m", "cook", "run", str(bench.recipe), "--set", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return "whole"


def kills(seed: int, count: int) -> list[Fault]:
    """So many kills at random steps, and as many at random moments of a save, by turns."""
    source = random.Random(seed)
    steps = [Fault("kill", source.randint(1, 4)) for _ in range(count)]
    saves = [Fault("kill", source.randint(1, 2 * FSYNCS), "fsync") for _ in range(count)]
    return [fault for pair in zip(steps, saves, strict=True) for fault in pair]


def killed(bench: Bench, name: str, faults: list[Fault]) -> list[Fault]:
    """Start, die, resume, die, ... and end; the faults that struck before the end."""
    for number, fault in enumerate(faults):
        done = bench.run(name, "--resume", fault=fault)
        assert done.code in (-9, 0), done.output
        if done.code == 0:
            return faults[:number]
        assert not (bench.root / name).exists()
    done = bench.run(name, "--resume")
    assert done.code == 0, done.output
    return faults


def test_kills_at_steps_and_inside_saves(bench: Bench, whole: str) -> None:
    faults = kills(seed=0, count=3)
    assert killed(bench, "killed", faults) == faults
    bench.same("killed", whole)
    assert not (bench.root / ".killed.cook").exists()


def test_signals_and_damaged_checkpoints(bench: Bench, whole: str) -> None:
    name = "stopped"
    done = bench.run(name, "--resume", fault=Fault("term", 5))
    assert done.code == 1
    assert "there is nothing to resume: starting afresh" in done.output
    assert "error: stopped after step 5 of 10; a checkpoint is written\n  run again with" in done.output
    assert bench.steps(name) == ["step-4", "step-5"]
    damage(bench.checkpoints(name) / "step-5" / "optimizer.pt", lambda data: data[: len(data) // 2])

    done = bench.run(name, "--resume", fault=Fault("int", 2))
    assert done.code == 1
    assert "step-5 is corrupt (optimizer.pt has " in done.output
    assert "resuming after step 4" in done.output
    assert "stopped after step 6 of 10" in done.output
    assert bench.steps(name) == ["step-4", "step-5.corrupt", "step-6"]
    damage(bench.checkpoints(name) / "step-6" / "session.pt", flipped)

    # The user has other ideas in between; each is refused, and nothing is lost.
    done = bench.run(name)
    assert done.code == 2
    assert "an interrupted run waits at step 4" in done.output
    done = bench.run(name, "--resume", "--set", "train.learning_rate=0.1", "--set", "passes[1].sparsity=0.6")
    assert done.code == 2
    assert "train.learning_rate: 0.01 -> 0.1" in done.output
    assert "passes[1].sparsity: 0.5 -> 0.6" in done.output
    assert bench.steps(name) == ["step-4", "step-5.corrupt", "step-6.corrupt"]

    done = bench.run(name, "--resume")
    assert done.code == 0, done.output
    assert "resuming after step 4" in done.output
    bench.same(name, whole)


def damage(file: Path, change: Any) -> None:
    file.write_bytes(change(file.read_bytes()))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_a_full_disk_costs_no_checkpoint(bench: Bench) -> None:
    name = "full"
    done = bench.run(name, fault=Fault("full", 5))
    assert done.code == 1
    assert "cannot write the checkpoint of step 6: File too large; step-4 is intact" in done.output
    assert "free some space" in done.output
    assert bench.steps(name) == ["step-2", "step-4"]
    # Stopped after the last update: what is left is the result, and the disk is full for it.
    assert bench.run(name, "--resume", fault=Fault("term", STEPS - 4)).code == 1
    done = bench.run(name, "--resume", fault=Fault("full", 1, moment="fsync"))
    assert done.code == 1
    assert "the folder cannot be written: File too large" in done.output
    assert not (bench.root / name).exists()
    newest = checkpoint.newest(bench.checkpoints(name))
    assert newest is not None
    assert newest.name == f"step-{STEPS}"


def test_a_finished_output_is_kept(bench: Bench, whole: str) -> None:
    before = contents(bench.root / whole)
    done = bench.run(whole, "--resume")
    assert done.code == 0, done.output
    assert "is finished already" in done.output
    done = bench.run(whole)
    assert done.code == 2
    assert f"{bench.root / whole}: the folder exists already" in done.output
    assert "--force" in done.output
    done = bench.run(whole, "--resume", "--set", "train.seed=1")
    assert done.code == 2
    # Even with --force it stays until there is another.
    assert bench.run(whole, "--force", fault=Fault("kill", 3)).code == -9
    assert contents(bench.root / whole) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("term", "broken"), [("task", "model"), ("logits", "teacher")])
def test_nan_in_a_loss_term_stops_the_run(bench: Bench, term: str, broken: str) -> None:
    """One row of the training data holds a word whose embedding is NaN in the model, or in the teacher."""
    poisoned = bench.root / f"{broken}-nan"
    model = tiny.model(seed=0 if broken == "model" else 1)
    with torch.no_grad():
        words = model.get_parameter("bert.embeddings.word_embeddings.weight")
        words[tiny.tokenizer().convert_tokens_to_ids(POISON)] = torch.nan
    model.save_pretrained(poisoned)
    tiny.tokenizer().save_pretrained(poisoned)
    lines = (bench.root / "train.tsv").read_text().splitlines()
    lines[3] = f"good {POISON}\t1"
    table = bench.root / "poisoned.tsv"
    table.write_text("\n".join(lines) + "\n")
    name = f"nan-{term}"
    changes = f"{broken}.path={poisoned}", f"data.train={table}", "train.save_every=1"

    done = bench.run(name, *(word for change in changes for word in ("--set", change)))
    assert done.code == 1
    found = re.search(r"error: the loss term '(\w+)' is NaN at step (\d+) of 10", done.output)
    assert found, done.output
    step = int(found[2])
    assert (found[1], step >= 2) == (term, True)
    assert "Traceback" not in done.output
    # The last step that was made is the newest checkpoint, and it is as sound as before.
    assert bench.steps(name) == [f"step-{step - 1}", f"step-{step}"]
    newest = checkpoint.newest(bench.checkpoints(name))
    assert newest is not None
    module = checkpoint.load(newest)["session"]["module"]
    strange = [key for key, value in module.items() if not value.isfinite().all()]
    assert strange == (["model.bert.embeddings.word_embeddings.weight"] if broken == "model" else [])
    assert not (bench.root / name).exists()


def test_a_rerun_that_was_interrupted_goes_on(bench: Bench, whole: str) -> None:
    assert bench.run("again").code == 0
    assert bench.run("again", "--force", fault=Fault("term", STEPS - 4)).code == 1
    done = bench.run("again", "--resume")
    assert done.code == 0, done.output
    assert "resuming after step" in done.output
    bench.same("again", whole)
    assert "finished already" in bench.run("again", "--resume").output


def test_other_rows_are_not_gone_on_with(tmp_path: Path, bench: Bench) -> None:
    """The recipe is the same, and what it names is not."""
    assert bench.run("rows", fault=Fault("term", STEPS - 4)).code == 1
    table = bench.root / "train.tsv"
    before = table.read_text()
    try:
        tiny.table(table, 24, seed=5)
        done = bench.run("rows", "--resume")
    finally:
        table.write_text(before)
    assert done.code == 2
    assert "the training rows are others than at that checkpoint" in done.output
    assert bench.run("rows", "--resume").code == 0
