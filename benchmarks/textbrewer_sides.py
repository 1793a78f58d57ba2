"""The two sides of `benchmarks/textbrewer.py`: one distillation, as cook and as TextBrewer run it."""

from __future__ import annotations

import importlib
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from cook.data import batches
from cook.data.tasks import Task
from cook.model.hub.load import load_processor
from cook.pipeline import environment
from cook.pipeline.inputs import load_model, load_student, make_passes, read_data
from cook.recipe import Recipe, load_recipe
from cook.say import silent
from cook.sections import TrainSection
from cook.session import Session
from cook.train.loop import Loop, steps_of
from cook.train.optimizer import adamw, share_of_rate
from cook.train.recorder import StateRecorder
from cook.train.seeds import seed_everything


@dataclass(frozen=True)
class Setting:
    """What both sides are told."""

    teacher: str
    train: str
    validation: str
    text: tuple[str, ...]
    label: str = "label"
    layers: tuple[int, ...] = (1, 3, 5)
    max_length: int = 128
    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 1e-4
    temperature: float = 4.0
    seed: int = 0

    def recipe(self) -> Recipe:
        """The setting as cook has it."""
        taught = {
            f"layers[{mine}].output": f"layers[{layer}].output" for mine, layer in enumerate(self.layers)
        }
        return load_recipe(
            {
                "version": 1,
                "model": {"path": self.teacher, "task": "text-classification"},
                "student": {"layers": self.layers},
                "teacher": "self",
                "data": {
                    "train": self.train,
                    "validation": self.validation,
                    "text": self.text if len(self.text) > 1 else self.text[0],
                    "label": self.label,
                    "max_length": self.max_length,
                },
                "train": {
                    "epochs": self.epochs,
                    "batch_size": self.batch_size,
                    "learning_rate": self.learning_rate,
                    "seed": self.seed,
                },
                "passes": [
                    {"distill.logits": {"temperature": self.temperature}},
                    {"distill.hidden": {"map": taught}},
                ],
            },
            partial=True,
        )

    def brewed(self, folder: str, steps: int, device: torch.device) -> tuple[Any, Any]:
        """The setting as TextBrewer has it: for training, for distilling."""
        brewer = textbrewer()
        matches = [
            {
                "layer_S": mine + 1,  # behind the embeddings
                "layer_T": layer + 1,
                "feature": "hidden",
                "loss": "hidden_mse",
                "weight": 1 / len(self.layers),
            }
            for mine, layer in enumerate(self.layers)
        ]
        return (
            brewer.TrainingConfig(output_dir=folder, log_dir=None, ckpt_steps=steps, device=device),
            brewer.DistillationConfig(
                temperature=self.temperature,
                kd_loss_type="ce",
                kd_loss_weight=self.temperature**2,
                hard_label_weight=1,
                intermediate_matches=matches,
            ),
        )


@dataclass
class TaskRun:
    """What both sides begin with."""

    recipe: Recipe
    task: Task
    rows: dict[str, Dataset]
    teacher: PreTrainedModel
    student: PreTrainedModel

    @property
    def train(self) -> TrainSection:
        """The recipe's section."""
        assert self.recipe.train is not None
        return self.recipe.train

    @property
    def steps(self) -> tuple[int, int]:
        """Of the run, and of an epoch."""
        return steps_of(self.train, len(self.rows["train"]))


def textbrewer() -> Any:
    """The package."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return importlib.import_module("textbrewer")
    except ImportError as error:
        raise SystemExit(f"{error}: pip install --no-deps textbrewer, and tensorboard") from None


def prepared(setting: Setting) -> TaskRun:
    """Read the teacher and the tables, make the student."""
    recipe = setting.recipe()
    data = read_data(recipe, silent)
    teacher = load_model(recipe, data, silent)
    processor = load_processor(recipe.model, data.task.processor)
    student = load_student(recipe, teacher, data, silent, processor)
    rows = {split: data.task.prepare(raw, processor) for split, raw in data.raw.items()}
    device = environment.accelerator(recipe).device
    for model in (teacher, student):
        model.to(device)
    return TaskRun(recipe, data.task, rows, teacher, student)


def by_cook(setting: Setting, pause: Callable[[], None]) -> TaskRun:
    """A run of cook's loop; `pause` is called once a batch."""
    task_run = prepared(setting)
    recipe, collate = task_run.recipe, task_run.task.collate

    def paused(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        pause()
        return collate(rows)

    task_run.task.collate = paused  # type: ignore[method-assign]
    total, epoch = task_run.steps
    passes = make_passes(recipe)
    with Session(
        passes, task_run.student, total_steps=total, steps_per_epoch=epoch, teacher=task_run.teacher
    ) as session:
        Loop(
            session,
            task_run.task,
            task_run.rows["train"],
            task_run.train,
            accelerator=environment.accelerator(recipe),
            recorder=StateRecorder(task_run.student, passes, evaluate=dict, macs=lambda: None),
            folder=None,
            identity={},
            bar=False,
        ).run()
        session.finish()
    task_run.task.collate = collate  # type: ignore[method-assign]
    return task_run


def by_textbrewer(setting: Setting, pause: Callable[[], None]) -> TaskRun:
    """A run of TextBrewer's loop; `pause` is called once a batch."""
    task_run = prepared(setting)
    train, (total, _) = task_run.train, task_run.steps
    seed_everything(setting.seed)

    def loader() -> Iterator[dict[str, Tensor]]:
        for batch in ordered(task_run):
            pause()
            yield batch

    with tempfile.TemporaryDirectory() as folder, (distiller := brewing(setting, task_run, folder)):
        optimizer = adamw(
            task_run.student, learning_rate=train.learning_rate, weight_decay=train.weight_decay
        )
        distiller.train(
            optimizer,
            loader(),
            num_steps=total,
            scheduler_class=LambdaLR,
            scheduler_args={"lr_lambda": lambda step: share_of_rate(step, total, 0, train.schedule)},
            max_grad_norm=train.clip,
            output_hidden_states=True,
        )
    return task_run


def ordered(task_run: TaskRun) -> Iterator[dict[str, Tensor]]:
    """The batches that cook's loop makes, epoch after epoch."""
    rows, train = task_run.rows["train"], task_run.train
    for epoch in itertools.count():
        updates = batches.plan_epoch(batches.lengths(rows), len(rows), train.batch_size, train.seed, epoch)
        for [(batch, _)] in batches.epoch_loader(rows, task_run.task, updates):
            yield batch


def brewing(setting: Setting, task_run: TaskRun, folder: str) -> Any:
    """TextBrewer's distiller; as a context it sets the modes of both models."""

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {
            "logits": outputs.logits,
            "hidden": outputs.hidden_states,
            "losses": outputs.loss,
            "inputs_mask": batch["attention_mask"],
        }

    configs = setting.brewed(folder, task_run.steps[0], task_run.student.device)
    return textbrewer().GeneralDistiller(*configs, task_run.teacher, task_run.student, adaptor, adaptor)
