"""The cache of prepared data: what is told apart, what is used again, what is made again."""

from __future__ import annotations

import os
import time

import pytest
from transformers import BertConfig

from cook.data.rows import cache
from cook.errors import CookError, RunError
from tests.helpers import tiny
from tests.helpers.sections import TEXTS, bound, entries, own_cache, rows

__all__ = ["own_cache"]


def test_the_cache_is_used_again_and_tells_everything_apart(own_cache):
    dataset = rows()
    first = bound(dataset).prepare(dataset, tiny.tokenizer())[:]
    one = entries(own_cache)
    assert bound(dataset).prepare(rows(), tiny.tokenizer())[:] == first
    assert entries(own_cache) == one, "an equal table and an equal tokenizer use the entry as it is"
    bound(dataset, max_length=4).prepare(dataset, tiny.tokenizer())
    other = tiny.tokenizer()
    other.truncation_side = "left"
    bound(dataset).prepare(dataset, other)
    added = tiny.tokenizer()
    added.add_tokens(["film plot"])
    wide = BertConfig(vocab_size=50, max_position_embeddings=32, **tiny.LABELS)
    bound(dataset, wide).prepare(dataset, added)
    for column, values in (("label", [0, 0, 0, 1]), ("sentence", ["bad film", *TEXTS[1:]])):
        changed = rows(**{**dataset[:], column: values})
        bound(changed).prepare(changed, tiny.tokenizer())
    bound(dataset).prepare(dataset.select([1, 0, 2, 3]), tiny.tokenizer())
    assert len(entries(own_cache)) == 7
    assert all(name.endswith(".arrow") for name in entries(own_cache))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_entry_is_made_again(own_cache, damage):
    dataset = rows()
    expected = bound(dataset).prepare(dataset, tiny.tokenizer())[:]
    [path] = own_cache.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": bytes(content[:-9]), "flipped": bytes(content), "empty": b""}[damage])
    assert bound(dataset).prepare(dataset, tiny.tokenizer())[:] == expected
    assert list(own_cache.iterdir()) == [path]


def test_what_fails_leaves_nothing_in_the_cache(own_cache):
    def broken():
        yield tiny_table()
        raise CookError("no")

    def tiny_table():
        return rows().data.table

    with pytest.raises(CookError):
        cache.stored("key", broken)
    assert list(own_cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COOK_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="COOK_CACHE"):
        bound(rows()).prepare(rows(), tiny.tokenizer())


def test_a_cache_that_cannot_be_read_is_said(own_cache):
    (own_cache / f"{'k' * 40}-0.arrow").mkdir(parents=True)
    with pytest.raises(RunError, match="the cache cannot be read"):
        cache.stored("k" * 40, lambda: [])


def test_what_a_killed_process_left_goes_after_a_day(own_cache):
    own_cache.mkdir(exist_ok=True)
    left, going_on = own_cache / "one.tmp", own_cache / "two.tmp"
    for path, age in ((left, cache.ABANDONED + 60), (going_on, cache.ABANDONED - 60)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    cache.put("key", "answers", lambda path: path.touch())
    assert not left.exists()
    assert going_on.exists()
