"""Evaluation: a model's predictions for a split, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset

from cook.data import batches
from cook.data.rows.sources import sample
from cook.data.tasks.task import IGNORE, Task
from cook.model.probe.measure import evaluating
from cook.progress import bar

Autocast = Callable[[], AbstractContextManager[Any]]


def evaluate(
    model: torch.nn.Module,
    dataset: Dataset,
    task: Task,
    *,
    batch_size: int,
    limit: int | None = None,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
    progress: bool = False,
) -> dict[str, float]:
    """The task's metrics and `loss`, the mean over all items of the split.

    Args:
        model: on `device`; the train or eval mode of each module is restored.
        dataset: from `task.prepare`.
        task: bound to the model.
        batch_size: examples per batch; affects speed, not the result.
        limit: maximum number of rows, None for all; always the same rows.
        device: of the model.
        autocast: creates the context of each forward.
        progress: show a progress bar if it takes longer than a few seconds.
    """
    found, loss = predict(
        model,
        sample(dataset, limit),
        task,
        batch_size=batch_size,
        device=device,
        autocast=autocast,
        progress=progress,
    )
    return {**task.metrics(found), "loss": loss}


F1_NAMES = ("f1_binary", "f1_macro")
"""The metrics called `f1` in older recipes: the first for two classes, the second for more."""


def metric_named(name: str, metrics: Iterable[str]) -> str:
    """The metric meant by a recipe: `f1` denotes the one of `F1_NAMES` that the task has."""
    known = list(metrics)
    if name == "f1" and name not in known:
        return next((each for each in F1_NAMES if each in known), name)
    return name


def predict(
    model: torch.nn.Module,
    dataset: Dataset,
    task: Task,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
    progress: bool = False,
) -> tuple[dict[str, torch.Tensor], float]:
    """`task.predictions` of all rows, in dataset order and on the CPU, and the mean loss."""
    lengths = batches.lengths(dataset)
    order = list(range(len(dataset)))
    if lengths is not None:
        # Longest first: little padding, and a batch that is too large fails immediately.
        order.sort(key=lambda index: (-lengths[index], index))
    updates = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    parts: list[dict[str, torch.Tensor]] = []
    total, items = 0.0, 0
    drawn = bar(len(updates), shown=progress, unit="batches", passing="evaluating")
    with drawn, evaluating(model), torch.inference_mode():
        for [(batch, _)] in batches.epoch_loader(dataset, task, updates):
            count = task.count(batch)
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast():
                outputs = model(**moved)
            parts.append({k: v.cpu() for k, v in task.predictions(outputs, moved).items()})
            total += outputs.loss.double().item() * count
            items += count
            drawn.update()
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
    joined = {name: _joined([part[name] for part in parts])[back] for name in parts[0]}
    return joined, total / max(items, 1)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate the rows of all `parts`; if lengths differ, shorter rows are padded with IGNORE."""
    if parts[0].ndim < 2 or len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=IGNORE) for part in parts])
