"""Assignment of examples to updates, and their collation into batches.

The order is a pure function of (seed, epoch): a resumed or prefetching run has the same examples in the same
updates.
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
"""Number of batches sorted by length together: little padding while the order stays random."""

Batch = dict[str, torch.Tensor]
Update = list[tuple[Batch, bool]]
"""The micro-batches of one update in one process, and whether each has zero weight."""


@dataclass(frozen=True)
class MicroBatch:
    """The examples that one process runs in one forward.

    Attributes:
        indices: of the examples.
        weight_zero: no example of the update was left for this micro-batch; it repeats one, whose loss must
            have zero weight, so that every process runs the same number.
    """

    indices: list[int]
    weight_zero: bool = False


def lengths(dataset: Dataset) -> list[int] | None:
    """The number of tokens of each example, or None if all are equal (images)."""
    return list(dataset["length"][:]) if "length" in dataset.column_names else None


def plan_epoch(
    lengths: Sequence[int] | None, n: int, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """The updates of one epoch: every index once, batches of similar lengths in random order.

    Args:
        lengths: of the examples, in any unit; None: shuffle only.
        n: number of examples.
        batch_size: examples of one update; the last update may be smaller.
        seed: not negative.
        epoch: counted from 0.
    """
    # The stream of the legacy generator is guaranteed not to change, unlike that of newer ones.
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

    Neighbours in `update` are of similar length; processes get adjacent pieces, so that none waits.

    Args:
        update: examples of one update, at least one.
        accumulate: micro-batches per process.
        rank: index of this process, from 0.
        world: number of processes.
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
        task: collates batches.
        updates: from `plan_epoch`; to resume in mid-epoch, the remaining ones.
        accumulate, rank, world: as for `share`.
        workers: threads that prepare updates ahead; batches do not depend on their number.
        numbered: add the index of each example to the batches: `rows`, int64 [batch].

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
    """Move a batch to a device, except the row indices, which are read on the CPU."""
    return {name: tensor if name == ROWS else tensor.to(device) for name, tensor in batch.items()}


def fetch(dataset: Dataset, indices: list[int]) -> list[dict[str, Any]]:
    """The rows at `indices`, read in one call."""
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
