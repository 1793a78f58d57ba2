"""Loops in small for the tests of the loop; as a program, one process of several.

torchrun --nproc-per-node 2 -m tests.helpers.loops weights.safetensors
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import PreTrainedModel

from cook.data import tasks
from cook.data.rows import sources
from cook.data.tasks import Task
from cook.pipeline import environment
from cook.pipeline.inputs import make_passes
from cook.recipe import load_recipe
from cook.session import Session
from cook.train.loop import Loop, steps_of
from cook.train.recorder import StateRecorder
from tests.helpers import tiny
from tests.helpers.sections import error, section

ROWS, BATCH = 30, 8
"""Three updates of eight and one of six make an epoch."""


@dataclass
class Rows:
    """Prepared rows, and the task that reads them."""

    task: Task
    rows: Dataset


def rows(folder: Path) -> Rows:
    """Sentences of different lengths, for the tiny BERT."""
    given = section(train=tiny.table(folder / "rows.tsv", ROWS))
    table = sources.load(given, error, splits=["train"])["train"]
    task = tasks.find("text-classification")(given, error)
    task.bind(tiny.model().config, task.labels({"train": table}))
    return Rows(task, task.prepare(table, tiny.tokenizer()))


def model(*, dropout: float = 0.0) -> PreTrainedModel:
    """The tiny BERT, by default one that computes the same every time.

    Its weights are ten times as large as a fresh model's, whose gradients are next to nothing.
    """
    made = tiny.model()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    for module in made.modules():
        if hasattr(module, "p"):
            module.p = dropout
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = dropout
    return made.train()


def loop(
    given: Rows,
    *,
    student: PreTrainedModel | None = None,
    passes: Sequence[Any] = (),
    metrics: Iterator[Mapping[str, float]] | None = None,
    folder: Path | None = None,
    **train: Any,
) -> Loop:
    """A loop over `given`, not yet run.

    Args:
        student: the tiny BERT without dropout unless it is given.
        passes: as in a recipe.
        metrics: what each evaluation finds.
        folder: for checkpoints.
        train: the section, but for batch size 8 and a learning rate of 0.01.
    """
    section_ = {"batch_size": BATCH, "learning_rate": 0.01, "device": "cpu", **train}
    recipe = load_recipe({"version": 1, "train": section_, "passes": list(passes)}, partial=True)
    student = model() if student is None else student
    total, per_epoch = steps_of(recipe.train, len(given.rows))
    found = make_passes(recipe)
    evaluate: Callable[[], dict[str, float]] = (lambda: dict(next(metrics))) if metrics else dict
    return Loop(
        Session(found, student, total_steps=total, steps_per_epoch=per_epoch, teacher="self"),
        given.task,
        given.rows,
        recipe.train,
        accelerator=environment.accelerator(recipe),
        recorder=StateRecorder(student, found, evaluate=evaluate, macs=lambda: None),
        folder=folder,
        identity={},
        bar=False,
    )


# Far from zero, so that rounding cannot turn the sign of a step where the gradient is nothing but noise.
SEVERAL: dict[str, Any] = {
    "steps": 5,
    "accumulate": 2,
    "epsilon": 0.01,
    "passes": [
        {"distill.logits": {"start": 2}},
        {"prune.weights": {"sparsity": 0.3, "schedule": "constant"}},
    ],
}
"""What one process and several must do alike."""


def main(target: Path) -> None:
    """Run a loop with SEVERAL in this process's share; the first process writes the weights."""
    with tempfile.TemporaryDirectory() as folder:
        made = loop(rows(Path(folder)), **SEVERAL)
        made.run()
    if made.accelerator.is_main_process:
        state = made.session.model.state_dict()
        save_file({name: value.contiguous() for name, value in state.items()}, target)
        told = {entry["step"]: entry["loss"]["task"] for entry in made.history if "loss" in entry}
        print(made.accelerator.num_processes, told)
    made.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
