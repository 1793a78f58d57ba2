"""Calibration examples: a fixed sample of the training rows, or given batches.

One-shot methods compute scores and statistics on them, in eval mode and outside of training. They are the
same at every call, so that results depend on the model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from cook.data.batches import fetch, lengths
from cook.data.tasks.task import Task
from cook.errors import CookError
from cook.model.probe.batch import examples_in, take

Batch = Mapping[str, Tensor]
Examples = Callable[[int], Iterator[Batch]]
"""Returns batches with at most the given number of examples in total, on the CPU."""


def sampled(rows: Dataset, task: Task, *, batch_size: int = 32, seed: int = 0) -> Examples:
    """A sample of prepared rows without repetition; larger samples contain smaller ones.

    Args:
        rows: from `task.prepare`.
        batch_size: rows of one batch, of similar length.
        seed: of the sample.
    """
    order = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed]))).permutation(len(rows))
    sizes = lengths(rows)

    def batches(count: int) -> Iterator[Batch]:
        chosen = order[:count].tolist()
        if sizes is not None:
            chosen.sort(key=lambda index: sizes[index])
        for start in range(0, len(chosen), batch_size):
            yield task.collate(fetch(rows, chosen[start : start + batch_size]))

    return batches


def given(batches: Iterable[Batch]) -> Examples:
    """Given batches in their order; the last one is cut to the requested number of examples.

    Raises:
        CookError: they are not batches.
    """
    kept: list[Any] = list(batches)
    for batch in kept:
        if not isinstance(batch, Mapping):
            found = f"found a {type(batch).__name__} among the calibration batches"
            hint = "one batch goes into a list: calibration=[batch]"
            raise CookError(f"{found}, expected mappings of tensors", where="calibration", hint=hint)

    def some(count: int) -> Iterator[Batch]:
        for batch in kept:
            if count <= 0:
                return
            there = examples_in(batch)
            yield batch if there <= count else take(batch, slice(count))
            count -= there

    return some
