"""Examples for passes to look at: the same every time, and no more than asked for."""

import torch

from cook.data import calibration
from tests.helpers import pass_matrix


def rows(tmp_path):
    resources = pass_matrix.Resources(tmp_path)
    recipe = resources.recipe(pass_matrix.Case("bert", ()))
    data = pass_matrix.read_data(recipe, lambda _: None)
    model = pass_matrix.load_model(recipe, data, lambda _: None)
    assert model.config is data.task.config
    return data.task.prepare(data.raw["train"], pass_matrix.tiny.tokenizer()), data.task


def texts(batches):
    return sorted(tuple(row[row != 0].tolist()) for batch in batches for row in batch["input_ids"])


def test_a_sample_is_the_same_at_every_call_and_larger_ones_hold_smaller_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("COOK_CACHE", str(tmp_path / "cache"))
    prepared, task = rows(tmp_path)
    sample = calibration.sampled(prepared, task, batch_size=4, seed=1)
    assert [len(batch["labels"]) for batch in sample(10)] == [4, 4, 2]
    assert texts(sample(10)) == texts(sample(10))
    few, many = texts(sample(10)), texts(sample(20))
    assert len(many) == 20
    assert all(few.count(each) <= many.count(each) for each in few)
    assert texts(sample(10)) != texts(calibration.sampled(prepared, task, seed=2)(10))
    assert len(texts(sample(10_000))) == len(prepared)
    widths = [batch["input_ids"].shape[1] for batch in sample(32)]
    assert widths == sorted(widths)


def test_given_batches_are_cut_where_they_are_too_many():
    batches = [{"a": torch.arange(3), "b": torch.arange(6).view(3, 2)}, {"a": torch.arange(3)}]
    some = calibration.given(iter(batches))
    for _ in range(2):
        assert [batch["a"].tolist() for batch in some(4)] == [[0, 1, 2], [0]]
    assert [batch["a"].tolist() for batch in some(2)] == [[0, 1]]
    assert next(iter(some(2)))["b"].shape == (2, 2)
    assert len(list(some(100))) == 2


def test_what_is_told_once_for_all_examples_is_not_cut():
    batch = {"position_ids": torch.arange(3)[None], "input_ids": torch.ones(4, 3, dtype=torch.long)}
    (cut,) = calibration.given([batch])(2)
    assert cut["input_ids"].shape == (2, 3)
    assert torch.equal(cut["position_ids"], batch["position_ids"])
