"""Examples of a batch: how many, and some of them."""

from __future__ import annotations

import pytest
import torch

from cook.model.probe.batch import examples_in, take

BATCH = {
    "position_ids": torch.arange(3)[None],
    "input_ids": torch.arange(12).view(4, 3),
    "labels": torch.arange(4),
    "scale": torch.tensor(2.0),
}


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([1, 2])])
def test_what_is_told_once_is_told_of_all(rows: slice | torch.Tensor) -> None:
    assert examples_in(BATCH) == 4
    found = take(BATCH, rows)
    assert found["labels"].tolist() == [1, 2]
    assert found["input_ids"].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert found["position_ids"] is BATCH["position_ids"]
    assert found["scale"] is BATCH["scale"]


def test_one_example_is_cut_like_several() -> None:
    one = take(BATCH, slice(2, 3))
    assert examples_in(one) == 1
    assert take(one, slice(0, 1))["labels"].tolist() == [2]
