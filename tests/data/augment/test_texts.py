"""Copies with words replaced: neighbours against brute force, every replaced token against its candidates."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cook.data.augment import texts
from cook.model.hub import load
from tests.helpers import tiny
from tests.helpers.augmenting import TEXTS, made, parts, prepared, refusal
from tests.helpers.sections import entries, own_cache

__all__ = ["own_cache"]


def source(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)


def near(embeddings, words, token, count):
    """The nearest words, one cosine after the other."""

    def cosine(other):
        a, b = embeddings[token].double().numpy(), embeddings[other].double().numpy()
        return float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)))

    return sorted((other for other in words if other != token), key=lambda other: -cosine(other))[:count]


@pytest.mark.parametrize("chunk", [1, 7, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_are_those_of_brute_force(chunk, dtype, monkeypatch):
    monkeypatch.setattr(texts, "CHUNK", chunk)
    embeddings = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    flags = np.arange(37) % 3 != 0
    words = np.flatnonzero(flags).tolist()
    table = texts.nearest(embeddings, flags, 5)
    assert table.shape == (37, 5)
    for token in range(37):
        assert table[token].tolist() == (near(embeddings, words, token, 5) if flags[token] else [-1] * 5)
    wanted = np.arange(37) < 20
    some = texts.nearest(embeddings, flags, 5, wanted)
    assert some[:20].equal(table[:20])
    assert (some[20:] == -1).all()
    assert texts.nearest(embeddings, flags, 1000).shape == (37, len(words) - 1)
    assert texts.nearest(embeddings, np.arange(37) == 4, 3).shape == (37, 0)


@given(
    st.lists(st.lists(st.booleans(), max_size=6), max_size=12),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_what_is_chosen(rows, share, seed):
    lengths = np.array([len(row) for row in rows], dtype=int)
    alone = np.array([flag for row in rows for flag in row], dtype=bool)
    where = texts.chosen(alone, lengths, share, source(seed))
    assert not (where & ~alone).any()
    assert where.tolist() == texts.chosen(alone, lengths, share, source(seed)).tolist()
    first = 0
    for row in rows:
        assert any(where[first : first + len(row)]) == any(row), "one word at least, where there is one"
        first += len(row)
    if share == 1:
        assert where.tolist() == alone.tolist()


def test_words_are_chosen_with_the_probability_asked_for():
    lengths = np.full(20_000, 50)
    alone = np.tile(np.arange(50) % 2 == 0, 20_000)
    where = texts.chosen(alone, lengths, 0.3, source(0)).reshape(-1, 50)
    assert abs(where[:, ::2].mean() - 0.3) < 0.003
    assert np.abs(where[:, ::2].mean(0) - 0.3).max() < 0.02
    # The one word of a row that would else have none: any of them, equally often.
    alone, lengths = np.ones(40_000, dtype=bool), np.full(10_000, 4)
    where = texts.chosen(alone, lengths, 0.0, source(0)).reshape(-1, 4)
    assert (where.sum(1) == 1).all()
    assert np.abs(where.mean(0) - 0.25).max() < 0.02


@given(st.integers(0, 30), st.integers(1, 5), st.integers(0, 1000))
def test_each_replaced_token_is_one_of_its_candidates(size, count, seed):
    draw = source(seed)
    ids, where = draw.randint(100, size=size), draw.randint(2, size=size).astype(bool)
    candidates = draw.randint(100, 200, size=(where.sum(), count))
    before = ids.copy()
    found = texts.replaced(ids, where, candidates, source(seed))
    row = 0
    for place in range(size):
        if where[place]:
            assert found[place] in candidates[row]
            row += 1
        else:
            assert found[place] == before[place]
    assert (ids == before).all()


def test_candidates_are_equally_likely():
    where = np.ones(40_000, dtype=bool)
    found = texts.replaced(np.zeros(40_000, dtype=int), where, np.tile([3, 5, 7, 9], (40_000, 1)), source(0))
    assert np.abs(np.bincount(found)[[3, 5, 7, 9]] / 40_000 - 0.25).max() < 0.02


@pytest.mark.parametrize("block", [4, 10_000])
def test_copies_follow_the_originals(block, monkeypatch):
    monkeypatch.setattr(texts, "ROWS", block)
    lines: list[str] = []
    tokenizer, model = tiny.tokenizer(), tiny.model()
    task, rows = prepared(say=lines.append)
    result = made(task, rows, model=model)
    assert len(result) == 4 * len(rows)
    assert result.features == rows.features
    original, *copies = parts(result, rows)
    assert original == rows["input_ids"][:]
    for name in {*rows.column_names} - {"input_ids"}:
        assert result[name][:] == rows[name][:] * 4, f"{name} of a copy is the original's"
    words = [tokenizer.convert_tokens_to_ids(word) for word in tiny.WORDS]
    embeddings = model.get_input_embeddings().weight.detach()
    changed = total = 0
    for copy in copies:
        for old, new in zip(original, copy, strict=True):
            assert len(old) == len(new)
            differing = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
            assert all(b in near(embeddings, words, a, 4) for a, b in differing)
            assert bool(differing) == any(token in words for token in old)
            changed, total = changed + len(differing), total + sum(token in words for token in old)
    assert len({str(copy) for copy in copies}) == 3, "copies differ from each other"
    assert lines[-1] == (
        f"augmented: 3 copies of 30 rows make 120; {changed / total:.1%} of the words in them were replaced; "
        "5 rows have none to replace"
    )


def test_pairs_keep_their_types_and_separators():
    tokenizer = tiny.tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    task, rows = prepared(tokenizer=tokenizer, second=TEXTS[::-1], share=1)
    result = made(task, rows, tokenizer=tokenizer)
    assert result["token_type_ids"][:] == rows["token_type_ids"][:] * 4
    for old, new in zip(rows["input_ids"][:] * 3, result["input_ids"][len(rows) :], strict=True):
        assert [a if a < 5 else None for a in old] == [b if b < 5 else None for b in new]
        assert all((a == b) == (a < 5) for a, b in zip(old, new, strict=True)), "share 1 replaces every word"


def test_the_same_inputs_give_the_same_file_and_others_another(own_cache, monkeypatch):
    task, rows = prepared()
    first = made(task, rows)
    one = entries(own_cache)
    assert first.cache_files, "it stays on the disk"
    torch.manual_seed(7)
    np.random.seed(7)
    assert made(task, rows)["input_ids"][:] == first["input_ids"][:]
    assert entries(own_cache) == one, "used again"
    monkeypatch.setenv("COOK_CACHE", str(own_cache / "other"))
    task, rows = prepared()
    again = made(task, rows)
    assert {path.name for path in (own_cache / "other").iterdir()} == {*one}, "the same bytes anywhere"
    known = [again]
    for options in ({"seed": 5}, {"copies": 2}, {"share": 0.9}, {"candidates": 2}):
        known.append(made(*prepared(**options)))
    known.append(made(task, rows, train=SimpleNamespace(seed=0, data_seed=5)))
    known.append(made(task, rows, model=tiny.model(seed=1)))
    assert known[5]["input_ids"][:] == known[1]["input_ids"][:], "null means the data's seed"
    different = {str(each["input_ids"][:]) for each in known}
    assert len(different) == len(known) - 1


def test_a_seed_of_its_own_goes_before_those_of_the_run():
    task, rows = prepared(seed=3)
    first = made(task, rows)
    second = made(task, rows, train=SimpleNamespace(seed=1, data_seed=2))
    assert first.cache_files == second.cache_files


PROCESS = """
from pathlib import Path
from tests.helpers.augmenting import made, prepared
print(Path(made(*prepared()).cache_files[0]["filename"]).name)
"""


def test_another_process_makes_the_same_rows(own_cache):
    name = made(*prepared()).cache_files[0]["filename"]
    environment = {**os.environ, "COOK_CACHE": str(own_cache / "another"), "OMP_NUM_THREADS": "2"}
    found = subprocess.run([sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True)
    assert os.path.basename(name) == found.stdout.strip(), found.stderr
    assert (own_cache / "another" / os.path.basename(name)).is_file()


def test_a_copy_is_a_function_of_the_seed_and_its_number():
    task, rows = prepared(copies=2)
    more = prepared(copies=5)[0]
    assert parts(made(task, rows), rows) == parts(made(more, rows), rows)[:3]


def test_nothing_is_asked_nothing_is_done():
    task, rows = prepared()
    task.data = replace(task.data, augment=None)
    assert made(task, rows) is rows


def test_whose_embeddings():
    first, second, lines = tiny.model(seed=1), tiny.model(seed=2), []
    task, rows = prepared(say=lines.append)
    of_first = made(task, rows, teacher=first)["input_ids"][:]
    assert made(task, rows, teacher=[(first, 2.0), (second, 1.0)])["input_ids"][:] == of_first
    assert made(task, rows, teacher=[first, second])["input_ids"][:] == of_first
    assert made(task, rows, model=first)["input_ids"][:] == of_first
    assert not any("own embeddings" in line for line in lines)
    assert made(task, rows, model=first, teacher=None)["input_ids"][:] == of_first
    assert sum("own embeddings" in line for line in lines) == 1
    assert made(task, rows, teacher=second)["input_ids"][:] != of_first


def test_random_embeddings_have_no_neighbours():
    model = tiny.model()
    model.cook_origin = load.Origin(new_head=True)
    error = refusal(*prepared(), model=model, teacher=None)
    assert "random weights" in error.message
    model.config.name_or_path = model.name_or_path = "a-trained-encoder-with-a-new-head"
    assert len(made(*prepared(), model=model, teacher=None))


def test_embeddings_that_are_no_numbers_are_refused():
    model = tiny.model()
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
    assert "not finite" in refusal(*prepared(), teacher=model).message


def test_a_matrix_that_is_too_small_is_refused():
    small = tiny.model()
    small.resize_token_embeddings(20)
    error = refusal(*prepared(), teacher=small)
    assert error.where == "data.augment"
    assert "ids up to 22, there are 20 word embeddings" in error.message
    large = tiny.model()
    large.resize_token_embeddings(32)
    result = made(*prepared(), teacher=large)
    assert max(map(max, result["input_ids"][:])) < 23, "rows that no token has are no words"


def test_data_without_a_word_is_refused(own_cache):
    error = refusal(*prepared(["unknown", "words", "!"]))
    assert error.where == "data.augment"
    assert "no word of the training data can be replaced" in error.message
    assert len(entries(own_cache)) == 1, "nothing but the prepared rows"


def test_images_are_refused():
    task, rows = prepared()
    error = refusal(task, rows.remove_columns("input_ids"))
    assert (error.where, error.hint) == ("data.augment", "leave data.augment out: it replaces words in texts")
