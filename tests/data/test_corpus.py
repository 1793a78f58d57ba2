"""Texts for passes: a run's own, and those of files."""

from __future__ import annotations

import pytest

from cook.data.corpus import corpus
from cook.data.rows.sources import load
from cook.data.tasks import find
from cook.errors import CookError
from cook.recipe import load_recipe
from tests.helpers import tiny


def reader(tmp_path, **data):
    recipe = load_recipe({"version": 1, "data": data, "passes": []}, partial=True)
    task = find("text-classification")(recipe.data, recipe.error)
    return corpus(task, load(recipe.data, recipe.error))


def test_a_runs_own_texts_and_those_of_files(tmp_path):
    train = tiny.table(tmp_path / "train.tsv", 5)
    validation = tiny.table(tmp_path / "validation.tsv", 3, seed=1)
    texts = reader(tmp_path, train=str(train), validation=str(validation))
    sentences = [
        [line.split("\t")[0] for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        for file in (train, validation)
    ]
    assert list(texts(None)) == sentences[0] + sentences[1]
    assert list(texts([str(validation)])) == sentences[1]
    lines = tmp_path / "lines.txt"
    lines.write_bytes("\ufeffone text\r\n\n  \nanother\tone \n".encode())
    assert list(texts([str(lines), str(validation)])) == ["one text", "another\tone ", *sentences[1]]
    assert list(texts(None)) == sentences[0] + sentences[1]


def test_both_texts_of_a_pair(tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("a\tb\tlabel\none\ttwo\t0\nthree\tfour\t1\n", encoding="utf-8")
    texts = reader(tmp_path, train=str(pairs), validation=str(pairs), text=["a", "b"])
    assert list(texts([str(pairs)])) == ["one", "three", "two", "four"]


def test_without_data_there_are_none_and_tables_cannot_be_read(tmp_path):
    assert list(corpus()(None)) == []
    with pytest.raises(CookError, match="is a table"):
        list(corpus()([str(tiny.table(tmp_path / "table.tsv", 2))]))
    with pytest.raises(CookError, match="cannot be read: No such file"):
        list(corpus()([str(tmp_path / "nothing")]))
