"""The doors for Python: `apply` for a model in memory, `attach` for somebody's own loop."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import cook
from cook.errors import CookError
from cook.model.hub.folder import weight_bytes
from tests.helpers import tiny


def examples(count: int = 48) -> list[dict[str, Any]]:
    """Rows as a person would write them down."""
    return [
        {"sentence": f"the film was {'good' if index % 2 else 'bad'}", "label": index % 2}
        for index in range(count)
    ]


def test_apply_trains_on_rows_in_memory() -> None:
    config = {
        "version": 1,
        "data": {"text": "sentence"},
        "train": {"steps": 40, "batch_size": 16, "learning_rate": 5e-3},
        "passes": [{"prune.weights": {"sparsity": 0.5, "end": "50%"}}, "distill.logits"],
    }
    rows = {"train": examples(), "validation": examples(16)}
    result = cook.apply(tiny.model(), config, data=rows, teacher=tiny.model(), tokenizer=tiny.tokenizer())
    assert result.report.model.after.metrics["accuracy"] > 0.9
    assert result.report.passes[0].facts["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert result.report.train is not None
    assert result.report.train["steps"] == 40
    assert not result.model.training


def test_apply_acts_at_once_without_data(tmp_path: Path) -> None:
    config = {"version": 1, "passes": [{"prune.weights": {"sparsity": 0.5}}, "quant.qat"]}
    result = cook.apply(tiny.model(), config)
    assert result.report.train is None
    assert [row.window for row in result.report.passes] == [None, None]
    assert result.report.model.after.bytes is not None
    result.model.save_pretrained(tmp_path)
    assert weight_bytes(tmp_path) == result.report.model.after.bytes
    batch = {name: value for name, value in tiny.batch().items() if name != "labels"}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, result.model(**batch).logits)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"version": 1, "passes": ["distill.logits"]}, "needs training"),
        ({"version": 1, "passes": [{"quant.qat": {"observer": "moving"}}]}, "needs training"),
        ({"version": 1, "teacher": "someone/else", "passes": []}, "give it as `teacher=`"),
        ({"version": 1, "train": {"steps": 1}}, "train: there is no data to train on"),
    ],
)
def test_apply_says_what_is_absent(config: dict[str, Any], words: str) -> None:
    with pytest.raises(CookError, match=words):
        cook.apply(tiny.model(), config)


def test_apply_refuses_a_metric_that_nothing_measures() -> None:
    config = {"version": 1, "data": {"text": "sentence"}, "train": {"steps": 2, "metric": "acuracy"}}
    rows = {"train": examples(), "validation": examples(16)}
    with pytest.raises(CookError, match=r"train.metric: there is no metric 'acuracy'\n.*'accuracy'"):
        cook.apply(tiny.model(), config, data=rows, tokenizer=tiny.tokenizer())


def test_apply_refuses_rows_of_another_name() -> None:
    with pytest.raises(CookError, match=r"'trian'[^$]*did you mean 'train'"):
        cook.apply(tiny.model(), {"version": 1, "passes": []}, data={"trian": examples()})


def test_apply_refuses_rows_without_their_split() -> None:
    with pytest.raises(CookError, match=r"found a list, expected rows by split\n  data={'train'"):
        cook.apply(tiny.model(), {"version": 1}, data=examples())  # type: ignore[arg-type]


def test_other_modules_are_refused_by_both_doors() -> None:
    module: Any = torch.nn.Linear(4, 4)
    for door in (cook.apply, partial(cook.attach, total_steps=1)):
        with pytest.raises(CookError, match="found a Linear, expected a model of transformers"):
            door(module, {"version": 1})


def test_a_target_without_a_match_names_its_pass() -> None:
    config = {"version": 1, "passes": ["quant.qat", {"prune.weights": {"sparsity": 0.5, "include": ["fnn"]}}]}
    with pytest.raises(CookError, match=r"passes\[1\]: 'fnn' matches no module"):
        cook.attach(tiny.model(), config, total_steps=3)


def test_the_model_teaches_itself_in_the_type_that_the_recipe_says() -> None:
    config = {
        "version": 1,
        "teacher": {"path": "self", "dtype": "bfloat16"},
        "passes": ["distill.logits"],
    }
    model = tiny.model()
    with cook.attach(model, config, total_steps=2) as session:
        session.module(tiny.batch())
        assert session.teachers[0].outputs.logits.dtype == torch.bfloat16
    assert model.dtype == torch.float32


def test_attach_serves_another_loop() -> None:
    model = tiny.model()
    config = {
        "version": 1,
        "passes": [{"prune.weights": {"sparsity": 0.5, "end": "4 epochs"}}, "distill.logits"],
    }
    with cook.attach(model, config, total_steps=10, steps_per_epoch=2, teacher="self") as session:
        optimizer = torch.optim.AdamW(session.module.parameters(), lr=1e-3)
        session.bind(optimizer)
        for step in range(10):
            session.before_step(step)
            terms = session.module(tiny.batch(seed=step))
            assert terms.keys() == {"task", "logits"}
            sum(terms.values(), torch.zeros(())).backward()
            optimizer.step()
            optimizer.zero_grad()
            session.after_step()
        session.finish()
    assert session.facts["prune.weights"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert type(model.get_submodule("bert.encoder.layer.0.output.dense")) is torch.nn.Linear
