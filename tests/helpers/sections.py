"""What the tests of data and tasks share: sections of a recipe, their errors, small tables, bound tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import BertConfig

from cook.data import tasks
from cook.errors import CookError
from cook.options import build
from cook.sections import DataSection
from tests.helpers import tiny

TEXTS = ["good film", "the plot was very bad", "dull", "a lovely story"]


def section(**given: Any) -> DataSection:
    """A data section; paths may be Path objects."""
    plain = {key: str(value) if hasattr(value, "joinpath") else value for key, value in given.items()}
    return build(DataSection, plain)


def error(key: str, message: str, hint: str | None = None) -> CookError:
    """What Recipe.error makes."""
    return CookError(message, where=key, hint=hint)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The cache folder of this test alone, for modules that import this."""
    monkeypatch.setenv("COOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(**columns) -> datasets.Dataset:
    """A table of these columns, or of TEXTS."""
    return datasets.Dataset.from_dict(columns or {"sentence": TEXTS, "label": [1, 0, 0, 1]})


def bound(
    dataset, config=None, *, building=False, name="text-classification", say=lambda line: None, **given
):
    """A task bound to a tiny model's config and this dataset's labels."""
    task = tasks.find(name)(section(**given), error, say)
    config = config or BertConfig(vocab_size=23, max_position_embeddings=32, **tiny.LABELS)
    task.bind(config, task.labels({"train": dataset}), building=building)
    return task


def entries(folder: Path) -> dict[str, int]:
    """The files of a folder, and which inode each is: a rewritten one has another."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}
