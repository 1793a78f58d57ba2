"""Runs of small models with the passes of a case: what the shared test checks for every pass.

A case (`pass_cases.py`) is run once without a break, and once stopped twice and continued each time in a new
session and loop.
"""

from __future__ import annotations

import copy
import itertools
import signal
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset, Features, Image, Value
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from cook.errors import Interrupted
from cook.model.hub import folder
from cook.model.probe.equivalence import outputs
from cook.passes import Effect, Pass
from cook.pipeline.execute import RunResult, execute
from cook.pipeline.folders import output
from cook.pipeline.inputs import load_model, load_teacher, make_passes, read_data
from cook.pipeline.plan import plan_passes
from cook.pipeline.prepare import prepare
from cook.recipe import Recipe, load_recipe
from cook.train import checkpoint
from cook.train.loop import Loop
from tests.helpers import tiny
from tests.helpers.pass_cases import TASKS, Case, listed, wants
from tests.helpers.traces import hooks, hooks_of

ROWS, BATCH, STEPS = 32, 8, 6
"""An epoch and a half."""
STOPS = (3, 5)
"""Steps after which a run is interrupted: in mid-epoch, inside the windows and behind the ends of some."""
TABLE_WORDS = tiny.WORDS[9:-1]
"""Words of the tables besides those that say the label: two of the vocabulary are never used."""
CHECKPOINT_STEP = 5
"""The step whose checkpoints are compared: masks and states of passes are gone when a run has finished."""


class Resources:
    """Model folders and data files, each made when it is first asked for.

    Args:
        root: an empty folder for them.
    """

    def __init__(self, root: Path):
        self.root = root
        self._models: dict[str, Path] = {}

    @cached_property
    def texts(self) -> tuple[Path, Path]:
        """Tables to train and to validate on."""
        return (
            tiny.table(self.root / "train.tsv", ROWS, rest=TABLE_WORDS),
            tiny.table(self.root / "validation.tsv", BATCH, seed=1, rest=TABLE_WORDS),
        )

    @cached_property
    def images(self) -> tuple[Path, Path]:
        """The same of random images, 8x8 in greys."""
        source = np.random.RandomState(0)
        features = Features({"image": Image(), "label": Value("string")})
        files = self.root / "train.parquet", self.root / "validation.parquet"
        for file, rows in zip(files, (ROWS, BATCH), strict=True):
            pixels = source.randint(0, 256, (rows, 8, 8)).astype(np.uint8)
            labels = [("negative", "positive")[row % 2] for row in range(rows)]
            table = Dataset.from_dict({"image": list(pixels), "label": labels}, features=features)
            table.to_parquet(file)
        return files

    def model(self, family: str) -> Path:
        """The folder of a tiny model."""
        if family not in self._models:
            self._models[family] = tiny.folder(self.root / family, family)
        return self._models[family]

    def recipe(self, case: Case) -> Recipe:
        """A recipe for the case; checkpoints are written at CHECKPOINT_STEP, whatever else happens."""
        train, validation = self.images if case.family == "vit" else self.texts
        task = TASKS.get(case.family, "text-classification")
        teacher = "teacher" in wants(case)
        return load_recipe(
            {
                "version": 1,
                "model": {"path": str(self.model(case.family)), "task": task},
                **({"teacher": "self"} if teacher else {}),
                "data": {"train": str(train), "validation": str(validation)},
                "train": {
                    "steps": STEPS,
                    "batch_size": BATCH,
                    "accumulate": 2,
                    "learning_rate": 0.01,
                    "save_every": CHECKPOINT_STEP,
                    "log_every": 2,
                    "device": "cpu",
                },
                "passes": listed(case),
                "output": {"path": str(self.root / "out")},
            }
        )


@dataclass
class Run:
    """One run that has ended."""

    model: PreTrainedModel
    passes: list[Pass]
    outcome: RunResult
    loop: Loop


def run(recipe: Recipe, checkpoints: Path, *, stop: int | None = None) -> Run:
    """Load everything, go on from the newest checkpoint if there is one, and finish.

    Args:
        stop: a signal comes in this step, counted from where the run goes on.

    Raises:
        Interrupted: with `stop`; no hook is left then (asserted).
    """
    data = read_data(recipe, _silent)
    model = load_model(recipe, data, _silent)
    processor = data.task.plain_processor() if data.task.processor == "image" else tiny.tokenizer()
    loops: list[Loop] = []
    before = hooks(model)

    def begun(loop: Loop) -> None:
        loops.append(loop)
        if stop is not None:
            _signal_in(loop.optimizer, stop)

    try:
        context = prepare(
            recipe,
            model,
            data,
            processor,
            Accelerator(cpu=True),
            teacher=lambda: load_teacher(recipe, model, data, processor, _silent),
        )
        outcome = execute(
            replace(
                context,
                folder=checkpoints,
                identity=output.identity(recipe, 1),
                state=output.restore(checkpoints, recipe, 1, _silent),
                begun=begun,
                progress=False,
            )
        )
    finally:
        if loops:
            assert hooks(model) == before
            assert hooks(loops[0].session.module) == before
            assert not hooks_of(loops[0].optimizer)
            assert not len(loops[0].session.hooks)
    return Run(model, list(context.passes), outcome, loops[0])


def _signal_in(optimizer: Optimizer, step: int) -> None:
    """Ctrl-C while the optimizer makes its `step`th step."""
    count = itertools.count(1)

    def hook(*_: Any) -> None:
        if next(count) == step:
            handle.remove()
            signal.raise_signal(signal.SIGINT)

    handle = optimizer.register_step_post_hook(hook)


@dataclass
class CaseResult:
    """The runs of a case, and what they left.

    Attributes:
        planned: the passes, each with what it planned.
        meta: the model on the meta device, with the planned edits.
        whole: the run without a break.
        resumed: the last part of the run that was stopped.
        checkpoints: those of both runs at CHECKPOINT_STEP.
        folder: where the resumed model is saved.
        batch: inputs of the resumed model.
        expected: its outputs for them, before it was saved.
    """

    case: Case
    planned: list[tuple[Pass, Effect]]
    meta: PreTrainedModel
    whole: Run
    resumed: Run
    checkpoints: tuple[dict[str, Any], dict[str, Any]]
    folder: Path
    batch: dict[str, Tensor]
    expected: dict[str, Tensor]


def run_case(case: Case, resources: Resources, scratch: Path) -> CaseResult:
    """Plan a case, run it without a break and with two, and save the resumed model.

    Raises:
        CookError: the plan refuses it.
    """
    recipe = resources.recipe(case)
    meta = load_model(recipe, read_data(recipe, _silent), _silent, meta=True)
    teachers = [copy.deepcopy(meta)] if recipe.teacher else []
    planned = plan_passes(meta, make_passes(recipe), teachers)
    whole = run(recipe, scratch / "whole")
    done = 0
    for step in STOPS:
        try:
            run(recipe, scratch / "stopped", stop=step - done)
        except Interrupted:
            done = step
            assert (scratch / "stopped" / f"step-{step}").is_dir()
        else:
            raise AssertionError("the signal did not stop the run")
    resumed = run(recipe, scratch / "stopped")
    first, second = (
        checkpoint.load(scratch / name / f"step-{CHECKPOINT_STEP}") for name in ("whole", "stopped")
    )
    batch = {name: value for name, value in tiny.batch(case.family).items() if name != "labels"}
    if (numbers := resumed.outcome.token_id_map) is not None:
        batch = numbers(batch)
    folder.save(resumed.model, scratch / "model")
    expected = outputs(resumed.model, batch)
    return CaseResult(
        case, planned, meta, whole, resumed, (first, second), scratch / "model", batch, expected
    )


def _silent(line: str) -> None:
    """Say nothing."""
