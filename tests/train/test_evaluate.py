"""Evaluation: figures against a slow reference, and a model that is left as it was."""

from __future__ import annotations

import pytest
import torch

from cook.data import tasks
from cook.data.rows import sources
from cook.data.tasks.task import IGNORE
from cook.train.evaluate import evaluate, evaluating, metric_named, predict
from tests.helpers import tiny
from tests.helpers.sections import error, section


@pytest.fixture(params=["bert", "gpt2", "vit"])
def setting(request, tmp_path, monkeypatch):
    """A tiny model, its task and a split."""
    monkeypatch.setenv("COOK_CACHE", str(tmp_path / "cache"))
    model = tiny.model(request.param)
    if request.param == "vit":
        given, name, processor = section(path="sklearn:digits", validation="validation[:40]"), "image", None
    else:
        tiny.table(tmp_path / "rows.tsv", rows=41)
        given, name, processor = section(validation=tmp_path / "rows.tsv"), "text", tiny.tokenizer()
    rows = sources.load(given, error, splits=["validation"])["validation"]
    if request.param == "vit":
        rows = rows.filter(lambda row: row["label"] < 2).cast_column(
            "label", sources.datasets.ClassLabel(names=["negative", "positive"])
        )
    task = tasks.find(f"{name}-classification")(given, error)
    task.bind(model.config, task.labels({"validation": rows}))
    return model, task.prepare(rows, processor), task


def test_the_figures_are_those_of_one_row_at_a_time(setting):
    model, rows, task = setting
    model.eval()
    right, losses = [], []
    with torch.no_grad():
        for row in range(len(rows)):
            batch = task.collate([rows[row]])
            outputs = model(**batch)
            right.append(bool(outputs.logits.argmax() == batch["labels"][0]))
            losses.append(outputs.loss.item())
    model.train()
    for size in (1, 7, 64):
        found = evaluate(model, rows, task, batch_size=size)
        assert found["accuracy"] == pytest.approx(sum(right) / len(right))
        assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert set(found) == {"accuracy", "f1_binary", "loss"}
    predicted, _ = predict(model, rows, task, batch_size=7)
    assert (predicted["predicted"] == predicted["labels"]).tolist() == right, "in the order of the rows"
    assert predicted["labels"].tolist() == rows["labels"][:]


def test_a_limit_counts_rows_and_autocast_is_used_for_each_batch(setting):
    model, rows, task = setting
    used = []

    def autocast():
        used.append(1)
        return torch.autocast("cpu", torch.bfloat16)

    first = evaluate(model, rows, task, batch_size=2, limit=3, autocast=autocast)
    assert len(used) == 2
    assert first == evaluate(model, rows, task, batch_size=2, limit=3, autocast=autocast)


def test_modes_come_back_even_after_a_failure():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    model[1].eval()

    def interrupted() -> None:
        with evaluating(model):
            assert not model.training
            assert not model[0].training
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_rows_of_different_lengths_are_joined():
    """What a task on tokens will need: predictions as long as their batch."""
    import datasets

    class Tokens(tasks.find("text-classification")):  # type: ignore[misc]
        def predictions(self, outputs, batch):
            return {"tokens": batch["input_ids"]}

        def metrics(self, predictions):
            return {}

    task = Tokens(section(), error)
    lists = [[1], [2, 3, 4], [5, 6]]
    rows = datasets.Dataset.from_dict({"input_ids": lists, "length": [1, 3, 2], "labels": [0, 1, 0]})
    found, _ = predict(tiny.model(), rows, task, batch_size=1)
    assert found["tokens"].tolist() == [[1, IGNORE, IGNORE], [2, 3, 4], [5, 6, IGNORE]]


def test_f1_of_old_recipes_is_the_one_that_the_task_has():
    assert metric_named("f1", ["accuracy", "f1_binary"]) == "f1_binary"
    assert metric_named("f1", ["accuracy", "f1_macro"]) == "f1_macro"
    assert metric_named("f1", ["accuracy", "f1"]) == "f1"
    assert metric_named("f1", ["loss"]) == "f1"
    assert metric_named("accuracy", ["accuracy", "f1_macro"]) == "accuracy"
