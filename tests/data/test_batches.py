"""The order of examples and their shares: pure functions, checked over many sizes."""

from __future__ import annotations

import threading
import time

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cook.data import batches


@given(
    n=st.integers(1, 700),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 100),
    bucketed=st.booleans(),
)
def test_every_index_once_and_all_batches_full_but_one(n, size, seed, epoch, bucketed):
    lengths = [index * 7919 % 31 for index in range(n)] if bucketed else None
    plan = batches.plan_epoch(lengths, n, size, seed, epoch)
    assert sorted(index for batch in plan for index in batch) == list(range(n))
    assert len(plan) == -(-n // size)
    assert sorted(map(len, plan))[1:] == [size] * (len(plan) - 1)
    assert plan == batches.plan_epoch(lengths, n, size, seed, epoch)


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    first = batches.plan_epoch(None, 100, 8, 0, 0)
    np.random.seed(5)
    torch.manual_seed(5)
    assert batches.plan_epoch(None, 100, 8, 0, 0) == first
    assert batches.plan_epoch(None, 100, 8, 1, 0) != first
    assert batches.plan_epoch(None, 100, 8, 0, 1) != first
    # Written down, so that no later version changes the order of a run that is resumed.
    assert batches.plan_epoch(None, 6, 4, 0, 0) == [[1, 4], [5, 0, 3, 2]]


def test_buckets_save_padding_and_stay_in_random_order():
    lengths = np.random.RandomState(0).randint(1, 100, 4000).tolist()

    def padded(plan):
        return sum(max(lengths[index] for index in batch) * len(batch) for batch in plan)

    plan = batches.plan_epoch(lengths, 4000, 16, 0, 0)
    assert padded(plan) < 1.05 * sum(lengths)
    assert padded(plan) < 0.6 * padded(batches.plan_epoch(None, 4000, 16, 0, 0))
    means = [np.mean([lengths[index] for index in batch]) for batch in plan]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.2


@given(n=st.integers(1, 60), accumulate=st.integers(1, 6), world=st.integers(1, 5))
def test_shares_cover_an_update_once_and_are_near_equal(n, accumulate, world):
    update = list(range(100, 100 + n))
    shares = [batches.share(update, accumulate, rank, world) for rank in range(world)]
    assert all(len(share) == accumulate for share in shares)
    parts = [part for share in shares for part in share]
    real = [part for part in parts if not part.weight_zero]
    assert sorted(index for part in real for index in part.indices) == update
    assert all(part.indices == [100] for part in parts if part.weight_zero)
    sizes = {0 if part.weight_zero else len(part.indices) for part in parts}
    assert max(sizes) - min(sizes) <= 1


class Rows:
    """The least of a task: rows go through as they are."""

    def collate(self, rows):
        time.sleep(0.002 * (rows[0]["value"] % 3))
        return {"value": torch.tensor([row["value"] for row in rows])}


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_ahead_do_not_change_the_order(workers):
    dataset = datasets.Dataset.from_dict({"value": list(range(50))})
    updates = batches.plan_epoch(None, 50, 6, 0, 0)
    for rank in range(2):
        plain = list(batches.epoch_loader(dataset, Rows(), updates, 2, rank, 2))
        ahead = list(batches.epoch_loader(dataset, Rows(), updates, 2, rank, 2, workers))
        assert len(plain) == len(updates)
        assert [[(b["value"].tolist(), zero) for b, zero in update] for update in plain] == [
            [(b["value"].tolist(), zero) for b, zero in update] for update in ahead
        ]


def test_a_failure_in_a_thread_reaches_the_loop_and_an_unfinished_epoch_ends():
    dataset = datasets.Dataset.from_dict({"value": list(range(50))})
    loader = batches.epoch_loader(dataset, Rows(), [[1], [99]], workers=1)
    with pytest.raises(IndexError):
        list(loader)
    loader = batches.epoch_loader(dataset, Rows(), [[index] for index in range(50)], workers=2)
    next(iter(loader))
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_lengths_are_none_where_all_are_equal():
    assert batches.lengths(datasets.Dataset.from_dict({"length": [3, 1]})) == [3, 1]
    assert batches.lengths(datasets.Dataset.from_dict({"value": [3, 1]})) is None
