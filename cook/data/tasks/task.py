"""What a task is: everything that the loop must know about data and outputs, and nothing else does.

A task turns rows into model inputs, inputs into batches, and outputs into metrics. The loop calls

    task = Task(data, error)                    the data section of the recipe
    labels = task.labels(datasets)              to build a model with; None when the task has no labels
    task.bind(config, labels)                   the config of the model that will run
    rows = task.prepare(dataset, processor)     model inputs, once, cached on disk
    batch = task.collate(rows[i:j])             every step
    task.metrics(task.predictions(outputs, batch))

A new task is one file with a subclass, entered in `cook/train/tasks/__init__.py`. It says which Auto
class it needs, and differs from its neighbours in few places:

- token classification: labels are one a token (`prepare` aligns words, `collate` pads them with IGNORE,
  `count` is the labels that are not IGNORE, predictions are padded rows);
- question answering: no labels; `prepare` makes windows with `start_positions` and `end_positions`;
- causal and sequence-to-sequence language models: no labels; `prepare` packs or pairs token rows, `count`
  is the tokens that are predicted, `metrics` gives perplexity, which is in `lower_is_better`;
- regression: no labels; `prepare` leaves `labels` as reals, `bind` sets `config.problem_type`.
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
"""The label that torch's losses leave out."""


class Task(ABC):
    """One kind of work for a model.

    Args:
        data: the recipe's section: `text`, `image`, `label` (columns), `max_length`.
        error: makes the error of one key of the recipe.
        say: takes a line for every choice that the user did not make.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    """The class of transformers that loads such models."""
    metric: ClassVar[str]
    """The metric that selects checkpoints unless the recipe names one."""
    processor: ClassVar[str] = "tokenizer"
    """What prepares the rows: `tokenizer` or `image`."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})
    """The metrics of which less is better."""

    def __init__(self, data: DataSection, error: ErrorAt, say: Say = silent):
        self.data, self.error, self.say = data, error, say
        self.config: Any = None

    def columns(self, dataset: Dataset) -> dict[str, list[str]]:
        """The columns in which every row must have a value, by the key of the recipe that names them.

        Raises:
            CookError: a column is missing, or holds something else.
        """
        return {}

    def labels(self, datasets: Mapping[str, Dataset]) -> list[str] | None:
        """The names of the labels in the order of their ids, or None where a task has none."""
        return None

    def bind(self, config: Any, labels: Sequence[str] | None, *, building: bool = False) -> None:
        """Meet the model's config, and check that it can do this task on this data.

        Args:
            config: the very object that the model holds or is built from: `prepare` may complete it.
            labels: from `labels()`.
            building: the model's head is new, so `labels` are written into the config.

        Raises:
            CookError: the model lacks labels that the data has.
        """
        self.config = config

    def plain_processor(self) -> Any | None:
        """The processor for a model that comes without one, if there can be one; after `bind`."""
        return None

    @abstractmethod
    def prepare(self, dataset: Dataset, processor: Any | None) -> Dataset:
        """Rows as model inputs: what `collate` needs, `labels`, and `length` where lengths differ.

        The same rows, processor and options give the same result; it is cached on disk.

        Args:
            dataset: a split from `cook.data.rows.sources.load`.
            processor: the model's tokenizer or image processor; None asks for the plain one.

        Raises:
            CookError: a column is missing or holds something else, or a value cannot be used.
        """

    def cut(self, rows: Dataset) -> int:
        """How many of the prepared rows were longer than an example may be, and lost their end."""
        return 0

    def texts(self, dataset: Dataset) -> Iterator[str]:
        """Every text that `prepare` would read in the dataset, those of a pair one by one; none in images."""
        return iter(())

    @abstractmethod
    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch, on the CPU; every tensor's first dimension is the examples."""

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """How many items the model's loss is a mean over: the weight of this batch in a larger one."""
        return len(batch["labels"])

    @abstractmethod
    def predictions(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the metrics need, small enough to keep for a whole split.

        One row an example. Rows may differ in length from batch to batch: they are padded with IGNORE.
        """

    @abstractmethod
    def metrics(self, predictions: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The figures of a whole split, from the joined predictions on the CPU."""
