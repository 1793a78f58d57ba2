"""Which examples form which update, and their way into batches.

The order is a pure function of (seed, epoch): a run that is resumed, or that prefetches, sees the same
examples in the same updates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from cook.data.tasks.task import Task
from cook.model.probe.batch import ROWS

BUCKET = 50
"""Batches that are sorted by length together: little padding, and still a random order."""

Batch = dict[str, torch.Tensor]
Update = list[tuple[Batch, bool]]
"""The micro-batches of one update in one process, and whether they count nothing."""


@dataclass(frozen=True)
class MicroBatch:
    """What one process runs at once.

    Attributes:
        indices: of the examples.
        weight_zero: the update had no example left for this one; it repeats one, whose loss must count
            nothing, so that every process runs as many.
    """

    indices: list[int]
    weight_zero: bool = False


def lengths(dataset: Dataset) -> list[int] | None:
    """The tokens of each example, or None when all are equal (images)."""
    return list(dataset["length"][:]) if "length" in dataset.column_names else None


def plan_epoch(
    lengths: Sequence[int] | None, n: int, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """The updates of one epoch: every index once, batches of similar lengths in random order.

    Args:
        lengths: of the examples, in any unit; None shuffles alone.
        n: examples.
        batch_size: examples of one update; the last ones may form a smaller update.
        seed: not negative.
        epoch: counted from 0.
    """
    # The legacy generator's stream is frozen for good, unlike that of numpy's newer ones.
    source = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
    order = source.permutation(n)
    if lengths is not None:
        size = np.asarray(lengths)
        for start in range(0, n, BUCKET * batch_size):
            bucket = order[start : start + BUCKET * batch_size]
            order[start : start + BUCKET * batch_size] = bucket[np.argsort(size[bucket], kind="stable")]
    batches = [order[start : start + batch_size].tolist() for start in range(0, n, batch_size)]
    return [batches[index] for index in source.permutation(len(batches))]


def share(update: Sequence[int], accumulate: int, rank: int, world: int) -> list[MicroBatch]:
    """The `accumulate` micro-batches of one process, near-equal in size.

    Neighbours in `update` are of similar length; processes get neighbouring pieces, so that none waits.

    Args:
        update: examples of one update, at least one.
        accumulate: micro-batches a process runs for it.
        rank: this process, from 0.
        world: processes.
    """
    pieces = accumulate * world
    own = []
    for piece in range(rank, pieces, world):
        part = list(update[piece * len(update) // pieces : (piece + 1) * len(update) // pieces])
        own.append(MicroBatch(part) if part else MicroBatch([update[0]], weight_zero=True))
    return own


def epoch_loader(
    dataset: Dataset,
    task: Task,
    updates: Sequence[Sequence[int]],
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    *,
    numbered: bool = False,
) -> Iterator[Update]:
    """The batches of each update, in order, on the CPU.

    Args:
        dataset: from `task.prepare`.
        task: collates.
        updates: from `plan_epoch`; to go on in mid-epoch, the ones that are left.
        accumulate, rank, world: as for `share`.
        workers: threads that prepare updates ahead; the batches are the same with any number.
        numbered: put the number of each example into the batches: `rows`, int64 [batch].

    Yields:
        `(batch, weight_zero)` of each micro-batch of this process.
    """

    def made(update: Sequence[int]) -> Update:
        parts = share(update, accumulate, rank, world)
        rows = iter(fetch(dataset, [index for part in parts for index in part.indices]))
        made = [(task.collate([next(rows) for _ in part.indices]), part.weight_zero) for part in parts]
        for (batch, _), part in zip(made, parts, strict=True):
            batch.update({ROWS: torch.tensor(part.indices)} if numbered else {})
        return made

    return _ahead(made, updates, workers) if workers else map(made, updates)


def placed(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device, but for the numbers of its rows, which are read on the CPU."""
    return {name: tensor if name == ROWS else tensor.to(device) for name, tensor in batch.items()}


def fetch(dataset: Dataset, indices: list[int]) -> list[dict[str, Any]]:
    """The rows at `indices`, read together."""
    block = dataset[indices]
    return [dict(zip(block, values, strict=True)) for values in zip(*block.values(), strict=True)]


def _ahead(made: Any, updates: Sequence[Sequence[int]], workers: int) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        for update in updates:
            waiting.append(pool.submit(made, update))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
