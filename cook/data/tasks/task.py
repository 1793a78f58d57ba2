"""The interface of tasks: everything that the training loop must know about data and outputs.

A task turns rows into model inputs, inputs into batches, and outputs into metrics. The loop calls

    task = Task(data, error)                    the data section of the recipe
    labels = task.labels(datasets)              to build a model with; None if the task has no labels
    task.bind(config, labels)                   the config of the model that will run
    rows = task.prepare(dataset, processor)     model inputs, once, cached on disk
    batch = task.collate(rows[i:j])             every step
    task.metrics(task.predictions(outputs, batch))

To add a task, write a file with a subclass and enter it in `cook/data/tasks/__init__.py`. It names its Auto
class, and differs from existing tasks in few places:

- token classification: one label per token (`prepare` aligns words, `collate` pads them with IGNORE,
  `count` is the number of labels that are not IGNORE, predictions are padded rows);
- question answering: no labels; `prepare` creates windows with `start_positions` and `end_positions`;
- causal and sequence-to-sequence language models: no labels; `prepare` packs or pairs token rows, `count`
  is the number of predicted tokens, `metrics` includes perplexity, which is in `lower_is_better`;
- regression: no labels; `prepare` keeps `labels` as reals, `bind` sets `config.problem_type`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset

from cook.data.rows.sources import ErrorAt
from cook.say import Say, silent
from cook.sections import DataSection

IGNORE = -100
"""The label that torch's losses ignore."""


class Task(ABC):
    """One kind of training task.

    Args:
        data: the recipe's section: `text`, `image`, `label` (columns), `max_length`.
        error: creates the error for one key of the recipe.
        say: called with a line for every default chosen.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    """The transformers class that loads such models."""
    metric: ClassVar[str]
    """The metric that selects checkpoints unless the recipe names another."""
    processor: ClassVar[str] = "tokenizer"
    """The kind of processor of the rows: `tokenizer` or `image`."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})
    """The metrics for which lower values are better."""

    def __init__(self, data: DataSection, error: ErrorAt, say: Say = silent):
        self.data, self.error, self.say = data, error, say
        self.config: Any = None

    def columns(self, dataset: Dataset) -> dict[str, list[str]]:
        """The columns in which every row must have a value, by the recipe key that names them.

        Raises:
            CookError: a column is missing, or has the wrong type.
        """
        return {}

    def labels(self, datasets: Mapping[str, Dataset]) -> list[str] | None:
        """The names of the labels in the order of their ids, or None if the task has none."""
        return None

    def bind(self, config: Any, labels: Sequence[str] | None, *, building: bool = False) -> None:
        """Bind the task to the model's config, and check that the model fits the task and the data.

        Args:
            config: the object used by the model, or to build it: `prepare` may complete it.
            labels: from `labels()`.
            building: the model's head is new, so that `labels` are written into the config.

        Raises:
            CookError: the model lacks labels that the data has.
        """
        self.config = config

    def plain_processor(self) -> Any | None:
        """The default processor for a model without one, if available; call after `bind`."""
        return None

    @abstractmethod
    def prepare(self, dataset: Dataset, processor: Any | None) -> Dataset:
        """Convert rows to model inputs: what `collate` needs, `labels`, and `length` if lengths differ.

        The result depends on rows, processor and options only; it is cached on disk.

        Args:
            dataset: a split from `cook.data.rows.sources.load`.
            processor: the model's tokenizer or image processor; None for the default one.

        Raises:
            CookError: a column is missing or has the wrong type, or a value cannot be used.
        """

    def cut(self, rows: Dataset) -> int:
        """The number of prepared rows that were truncated."""
        return 0

    def texts(self, dataset: Dataset) -> Iterator[str]:
        """Every text that `prepare` would read in the dataset, pairs separately; none for images."""
        return iter(())

    @abstractmethod
    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows to a batch on the CPU; the first dimension of every tensor is the examples."""

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """The number of items that the model's loss is a mean over: the batch's weight in a larger one."""
        return len(batch["labels"])

    @abstractmethod
    def predictions(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The data that metrics need, small enough to keep for a whole split.

        One row per example. Rows may differ in length from batch to batch: they are padded with IGNORE.
        """

    @abstractmethod
    def metrics(self, predictions: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The metrics of a whole split, from the concatenated predictions on the CPU."""
