"""What is measured on the folder that a run wrote."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cook.model.probe import measure
from cook.pipeline.folders import deliver
from cook.pipeline.inputs import load_model, read_data
from cook.recipe import load_recipe
from cook.say import silent
from tests.helpers import tiny


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_latency_is_compared_under_the_same_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    table = str(tiny.table(tmp_path / "rows.tsv", 8))
    recipe = load_recipe(
        {
            "version": 1,
            "model": {
                "path": str(tiny.folder(tmp_path / "bert")),
                "task": "text-classification",
                "attention": attention,
            },
            "data": {"train": table, "validation": table, "text": "sentence"},
            "train": {"steps": 1},
            "output": {"path": str(tmp_path / "out")},
        }
    )
    seen: dict[str, str] = {}

    def latency(models: Mapping[str, Any], batch: Any) -> dict[str, dict[str, Any]]:
        seen.update({name: model.config._attn_implementation for name, model in models.items()})
        return {name: {"median": 1.0, "low": 1.0, "high": 1.0, "times": [1.0]} for name in models}

    monkeypatch.setattr(measure, "latency", latency)
    batch = {name: value for name, value in tiny.batch(size=1).items() if name != "labels"}
    data = read_data(recipe, silent)
    whole = partial(load_model, recipe, data, silent)
    auto_class = data.task.auto_class
    deliver._latency(recipe, auto_class, whole, tmp_path / "bert", batch, torch.device("cpu"))
    assert seen == {"before": attention, "after": attention}
