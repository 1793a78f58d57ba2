"""Reading data: every kind of file and folder, splits and their parts, and what bad input gets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from huggingface_hub import utils as hub

from cook.data.rows import sources
from cook.errors import CookError
from tests.helpers import tiny
from tests.helpers.sections import error, section


def read(path: Path, text: str | bytes, **options):
    """The train split of a file with this content."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return sources.load(section(train=path, **options), error, splits=["train"])["train"]


def failure(**given) -> CookError:
    with pytest.raises(CookError) as caught:
        sources.load(section(**given), error)
    return caught.value


def test_csv_follows_the_quoting_standard(tmp_path):
    rows = read(tmp_path / "a.csv", 'text,label\n"a ""b"", c",x\n"two\nlines",y\n')
    assert rows[:] == {"text": ['a "b", c', "two\nlines"], "label": ["x", "y"]}


def test_quotes_that_would_swallow_rows_are_only_characters(tmp_path):
    told = 'text\tlabel\n"good" film\t1\n"lovely cast\t1\nbad plot\t0\nawful" story\t0\nfine\t1\n'
    rows = read(tmp_path / "a.tsv", told)
    assert rows["text"] == ['"good" film', '"lovely cast', "bad plot", 'awful" story', "fine"]
    assert rows["label"] == [1, 1, 0, 0, 1]
    unclosed = read(tmp_path / "b.tsv", 'text\tlabel\nfine\t1\n"lovely\t1\nbad\t0\n')
    assert unclosed["text"] == ["fine", '"lovely', "bad"]


def test_tsv_may_be_quoted_all_the_same(tmp_path):
    rows = read(tmp_path / "a.tsv", 'text\tlabel\n"a ""b"", c"\tx\n"two\nlines"\ty\n"a\ttab"\tz\n')
    assert rows[:] == {"text": ['a "b", c', "two\nlines", "a\ttab"], "label": ["x", "y", "z"]}


def test_words_that_other_readers_take_for_gaps_stay_words(tmp_path):
    rows = read(tmp_path / "a.tsv", "text\tlabel\nNA\tnone\nnull\tNaN\n\tx\n")
    assert rows[:] == {"text": ["NA", "null", ""], "label": ["none", "NaN", "x"]}


def test_a_column_is_numbers_only_if_nothing_is_lost(tmp_path):
    rows = read(tmp_path / "a.csv", "whole,real,code,mixed\n1,0.5,007,1\n-2,1e-3,010,x\n")
    assert rows[0] == {"whole": 1, "real": 0.5, "code": "007", "mixed": "1"}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    for name, text in (("a.csv", "text,label\na,1\n"), ("a.jsonl", '{"text": "a", "label": 1}\n')):
        assert read(tmp_path / name, b"\xef\xbb\xbf" + text.encode())[:] == {"text": ["a"], "label": [1]}


def test_json_as_lines_or_as_a_list(tmp_path):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    lines = "\n\n".join(json.dumps(row) for row in rows)
    for name, text in (("a.jsonl", lines), ("b.json", lines), ("c.json", json.dumps(rows, indent=1))):
        assert read(tmp_path / name, text).to_list() == rows


def test_parquet_keeps_label_names_and_text_files_are_lines(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    pyarrow.parquet.write_table(rows.data.table.cast(features.arrow_schema), tmp_path / "a.parquet")
    found = sources.load(section(train=tmp_path / "a.parquet"), error, splits=["train"])["train"]
    assert found.features["label"].names == ["n", "p"]
    assert read(tmp_path / "a.txt", "one\n\ntwo")["text"][:] == ["one", "", "two"]


def test_several_files_are_joined_in_order(tmp_path):
    paths = [tiny.table(tmp_path / f"{seed}.tsv", rows=3, seed=seed) for seed in (2, 1)]
    both = sources.load(section(train=[str(path) for path in paths]), error, splits=["train"])["train"]
    assert len(both) == 6
    assert (
        both["sentence"][:3]
        == sources.load(section(train=paths[0]), error, splits=["train"])["train"]["sentence"][:]
    )
    (tmp_path / "other.tsv").write_text("text\tlabel\na\t1\n")
    assert "has the columns ['text', 'label']" in str(
        failure(train=[str(paths[0]), str(tmp_path / "other.tsv")])
    )


def test_a_folder_of_files_named_like_splits(tmp_path):
    tiny.table(tmp_path / "train.tsv", rows=10)
    tiny.table(tmp_path / "dev.tsv", rows=4)
    (tmp_path / "README.md").write_text("about")
    found = sources.load(section(path=tmp_path, validation="dev"), error)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 10, "validation": 4}
    problem = failure(path=tmp_path, validation="test")
    assert problem.where == "data.validation"
    assert problem.hint is not None
    assert "dev, train" in problem.hint


def test_parts_of_one_split_neither_overlap_nor_leave_rows_out(tmp_path):
    path = tiny.table(tmp_path / "all.tsv", rows=33)
    whole = sources.load(section(path=path), error, splits=["train"])["train"]["sentence"][:]
    for border in ("70%", "-10", "5"):
        found = sources.load(
            section(path=path, train=f"train[:{border}]", validation=f"train[{border}:]"), error
        )
        assert found["train"]["sentence"][:] + found["validation"]["sentence"][:] == whole
    assert failure(path=path, train="train[a:b]").where == "data.train"
    assert "has no rows" in failure(path=path, train="train[:0]").message


def test_folders_that_datasets_saved_are_read(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    with sources.quiet():
        datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "saved"))
    assert len(sources.load(section(path=tmp_path / "saved"), error)["validation"]) == 2


def test_the_digits_are_stratified_and_always_the_same():
    first, again = sources.load(section(path="sklearn:digits"), error), sources.digits()
    assert {name: len(rows) for name, rows in first.items()} == {"train": 1437, "validation": 360}
    shares = np.bincount(first["validation"]["label"][:]) / np.bincount(first["train"]["label"][:])
    assert np.allclose(shares, 0.25, atol=0.02)
    image = first["train"][0]["image"]
    assert (image.mode, image.size) == ("L", (8, 8))
    assert np.asarray(image).max() <= 255
    assert first["train"].data.equals(again["train"].data)


def test_a_limit_draws_from_everywhere_in_order(tmp_path):
    path = tmp_path / "sorted.csv"
    path.write_text("text,label\n" + "".join(f"t{row},{row // 50}\n" for row in range(100)))
    rows = sources.load(section(train=path, validation=path, limit=20), error)
    numbers = [int(text[1:]) for text in rows["train"]["text"]]
    assert len(numbers) == 20
    assert numbers == sorted(numbers)
    assert set(rows["train"]["label"]) == {0, 1}
    assert len(rows["validation"]) == 100
    assert rows["train"]["text"][:] == sources.sample(rows["validation"], 20)["text"][:]


def test_missing_things_are_named_with_their_neighbours(tmp_path):
    path = tiny.table(tmp_path / "train.tsv")
    problem = failure(train=tmp_path / "trian.tsv")
    assert (problem.where, problem.hint) == ("data.train", "did you mean 'train.tsv'?")
    assert "no folder" in str(failure(train=tmp_path / "nowhere" / "a.tsv"))
    assert "data.path" in str(failure(train="train"))
    assert "sklearn:digits" in str(failure(path="sklearn:iris"))
    assert failure(path="owner/nothing-like-it").where == "data.path"
    assert "no split" in str(failure(train=path, validation=None))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.csv", b"text,label\na,b,c\n", "Expected 2 columns"),
        ("a.csv", b"text,text\na,b\n", "same name"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", "UTF"),
        ("a.csv", b"\xff\xfet", "not UTF-8"),
        ("a.jsonl", b'{"text": 1}\n{"text": ', "line 2"),
        ("a.json", b'{\n"text": 1\n}', "line 1"),
        ("a.json", b"[1, 2]", "item 1 is no object"),
        ("a.json", b'[{"a": 1}, {"a": "x"}]', "a.json"),
        ("a.parquet", b"nothing", "a.parquet"),
        ("a.txt", b"\xff", "not UTF-8"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    problem = failure(train=tmp_path / name)
    assert message in str(problem)
    assert problem.where == "data.train"


def test_other_suffixes_are_refused(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\na,1\n"))
    assert "ends in one of .csv" in str(failure(train=path))


def test_image_paths_count_from_their_file(tmp_path):
    rows = read(tmp_path / "a.csv", "picture,label\nsub/a.png,1\n", image="picture")
    assert rows["picture"][:] == [str(tmp_path / "sub" / "a.png")]


def test_progress_bars_are_off_inside_and_as_before_afterwards():
    before = datasets.are_progress_bars_disabled(), hub.are_progress_bars_disabled()

    def interrupted() -> None:
        with sources.quiet():
            assert datasets.are_progress_bars_disabled()
            assert hub.are_progress_bars_disabled()
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert (datasets.are_progress_bars_disabled(), hub.are_progress_bars_disabled()) == before


def test_reading_prints_nothing(tmp_path, capfd):
    with sources.quiet():
        datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    capfd.readouterr()
    sources.load(section(path=tmp_path / "saved"), error, splits=["train"])
    sources.load(section(path="sklearn:digits"), error)
    assert capfd.readouterr() == ("", "")


def test_large_columns_of_one_kind_are_plain_arrow(tmp_path):
    table = pa.table({"text": pa.array(["a"], pa.large_string()), "label": [1]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert (
        sources.load(section(train=tmp_path / "a.parquet"), error, splits=["train"])["train"][0]["text"]
        == "a"
    )
