"""What is refused or said of splits: missing cells, overlaps, labels; and validation cut out of train."""

from __future__ import annotations

import json
from collections import Counter

import datasets
import openpyxl
import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest

from cook.data import tasks
from cook.data.files import excel
from cook.data.files.encodings import Unreadable
from cook.data.rows import sources
from cook.data.rows.cutting import cut, shares
from cook.errors import CookError
from tests.helpers.sections import error, section


def load(splits=("train", "validation"), said=None, task="text-classification", **given):
    """The splits of a section, checked as a run checks them."""
    asked = section(**given)
    reader = tasks.find(task)(asked, error)
    say = said.append if said is not None else (lambda line: None)
    return sources.load(asked, error, splits=splits, columns=reader.columns, say=say)


def failure(**given) -> CookError:
    with pytest.raises(CookError) as caught:
        load(**given)
    return caught.value


def table(path, rows):
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return path


def labelled(path, counts, name="t"):
    """A file sorted by label, with so many rows of each."""
    rows = [(f"{name}{row} {label}", label) for label, count in counts.items() for row in range(count)]
    return table(path, rows)


def sheet(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def odd_file(path):
    """Five rows of which the second has no label and the fourth no text."""
    rows = [("good", "a"), ("bad", None), ("fine", "b"), (None, "b"), ("dull", "a")]
    if path.suffix in (".csv", ".tsv"):
        pandas.DataFrame(rows, columns=["text", "label"]).to_csv(
            path, index=False, sep="\t" if path.suffix == ".tsv" else ","
        )
    elif path.suffix == ".jsonl":
        records = [dict(zip(("text", "label"), row, strict=True)) for row in rows]
        path.write_text("\n".join(map(json.dumps, records)))
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"text": text, "label": label} for text, label in rows]))
    elif path.suffix == ".parquet":
        columns = {"text": [row[0] for row in rows], "label": [row[1] for row in rows]}
        pyarrow.parquet.write_table(pa.table(columns), path)
    else:
        sheet(path, [("text", "label"), *rows])
    return path


KINDS = [
    ("csv", "line 3", "line 5", 1),
    ("tsv", "line 3", "line 5", 1),
    ("jsonl", "line 2", "line 4", 1),
    ("json", "item 2", "item 4", 1),
    ("parquet", "row 1", "row 3", 0),
    ("xlsx", "row 3", "row 5", 1),
]


@pytest.mark.parametrize(("suffix", "label", "text", "first"), KINDS, ids=[kind[0] for kind in KINDS])
def test_missing_cells_are_refused_with_their_rows_or_dropped(tmp_path, suffix, label, text, first):
    path = odd_file(tmp_path / f"a.{suffix}")
    problem = failure(train=path, splits=["train"])
    assert problem.where == "data.text"
    assert f"column 'label' is empty in 1 of 5 rows of train: {label} of {path.name}" in problem.message
    assert f"column 'text' is empty in 1 of 5 rows of train: {text} of {path.name}" in problem.message
    assert f"(counted from {first})" in problem.message
    assert "data.missing: drop" in problem.hint
    said = []
    found = load(train=path, splits=["train"], missing="drop", said=said)["train"]
    assert found["text"][:] == ["good", "fine", "dull"]
    assert said == [
        f"train: 2 of 5 rows are left out, which have no text or no label: "
        f"{label.split()[0]}s {label.split()[1]}, {text.split()[1]} of {path.name} (counted from {first})"
    ]


@pytest.mark.parametrize("blank", ["  ", "\u00a0", "\u200b"])
def test_cells_of_whitespace_are_missing(tmp_path, blank):
    path = table(tmp_path / "a.csv", [("x", "a"), (blank, "a"), ("y", blank)])
    assert "line 3 of a.csv" in failure(train=path, splits=["train"]).message
    assert len(load(train=path, splits=["train"], missing="drop")["train"]) == 1


def test_rows_are_those_of_the_file_behind_slices_and_several_files(tmp_path):
    first = table(tmp_path / "a.csv", [("x", "a")] * 4)
    second = table(tmp_path / "b.csv", [('"two\nlines"', "a"), ("", "a"), ("y", "a"), ("", "b")])
    several = failure(train=[str(first), str(second)], splits=["train"])
    assert "is empty in 2 of 8 rows of train: lines 4, 6 of b.csv (counted from 1)" in several.message
    part = failure(path=second, train="train[2:]", splits=["train"])
    assert "1 of 2 rows of train: line 6 of b.csv" in part.message
    assert len(load(path=second, train="train[:1]", splits=["train"])["train"]) == 1
    many = table(tmp_path / "c.csv", [("", "a")] * 9)
    assert (
        "lines 2, 3, 4, 5, 6 of c.csv (counted from 1), and 4 more"
        in failure(train=many, splits=["train"]).message
    )


def test_numbers_and_pairs_and_images_may_be_missing_too(tmp_path):
    numbers = table(tmp_path / "a.csv", [("x", "1"), ("y", ""), ("z", "0")])
    assert load(train=numbers, splits=["train"], missing="drop")["train"]["label"][:] == ["1", "0"]
    reals = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1.0, float("nan")]})
    with sources.quiet():
        datasets.DatasetDict({"train": reals}).save_to_disk(str(tmp_path / "saved"))
    problem = failure(path=tmp_path / "saved", splits=["train"])
    assert "row 1 of train (counted from 0)" in problem.message
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,label\nx,y,1\nx, ,0\n")
    assert "columns 'a' or 'b' are empty" in failure(train=pairs, text=["a", "b"], splits=["train"]).message
    images = tmp_path / "images.csv"
    images.write_text("image,label\na.png,1\n,0\n")
    problem = failure(train=images, image="image", task="image-classification", splits=["train"])
    assert problem.where == "data.image"
    assert "line 3" in problem.message


def test_nothing_left_is_refused(tmp_path):
    path = table(tmp_path / "a.csv", [("", "a"), ("", "b")])
    assert "no rows left" in failure(train=path, splits=["train"], missing="drop").message


def test_labels_that_differ_by_whitespace_are_said(tmp_path):
    path = table(tmp_path / "a.csv", [("x", "a"), ("y", " a"), ("z", "b")])
    said = []
    load(train=path, splits=["train"], said=said)
    assert said == ["train: whitespace around 1 labels is left out (' a')"]


def test_splits_that_overlap_are_refused(tmp_path):
    path = labelled(tmp_path / "all.csv", {"a": 10, "b": 10})
    other = labelled(tmp_path / "other.csv", {"a": 5, "b": 5}, "o")
    for train, validation, count in [
        ("train[:90%]", "train[50%:]", 8),
        ("train", "train[90%:]", 2),
        ("train[:10]", "train", 10),
        ("train", str(other), 0),
        ([str(path), str(other)], str(other), 10),
        (str(path), "train[:5]", 5),
    ]:
        asked = {"path": path, "train": train, "validation": validation}
        if not count:
            load(**asked)
            continue
        problem = failure(**asked)
        assert problem.where == "data.validation"
        assert f"{count} of" in problem.message
        assert "split: 10%" in problem.hint
    said = []
    load(train=path, validation=path, said=said)
    assert said == ["train and validation are the same rows: the metrics say nothing about other data"]
    said = []
    load(path=path, train="train[:50%]", validation="train[:10]", said=said)
    assert "the same rows" in said[0]


def test_classes_that_train_lacks_are_said(tmp_path):
    path = labelled(tmp_path / "sorted.csv", {"a": 50, "b": 45, "c": 5})
    said = []
    load(path=path, train="train[:95%]", validation="train[95%:]", said=said)
    assert len(said) == 1
    assert "train has no rows of 1 of the 1 classes of validation: 'c' (5 rows)" in said[0]
    said = []
    load(path=path, train="train[:50%]", validation="train[50%:]", said=said)
    assert said[0] == "all 50 rows of train have the label 'a'"
    assert "'b' (45 rows), 'c' (5 rows)" in said[1]


def test_texts_in_both_splits_are_counted(tmp_path):
    train = table(tmp_path / "a.csv", [("x", "a"), ("y", "b"), ("z", "a")])
    validation = table(tmp_path / "b.csv", [("x", "a"), ("x", "b"), ("new", "a")])
    said = []
    load(train=train, validation=validation, said=said)
    assert said == ["2 of 3 validation rows have the same text as a row of train"]


def test_a_column_of_too_many_values_is_no_label(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text,label\n" + "".join(f"{row},t{row},{row % 2}\n" for row in range(20)))
    for column in ("id", "text"):
        problem = failure(train=path, label=column, text="text", splits=["train"])
        assert problem.where == "data.label"
        assert "20 different values in 20 rows" in problem.message
        assert "id, text, label" in problem.hint
    assert len(load(train=path, text="text", splits=["train"])["train"]) == 20
    assert len(load(train=path, text="text", validation=path, label="id", splits=["validation"])) == 1
    many = table(tmp_path / "b.csv", [(f"t{row}", row % 30) for row in range(300)])
    assert len(load(train=many, limit=20, splits=["train"])["train"]) == 20, "judged before the limit"


@pytest.mark.parametrize(("split", "size"), [("10%", 10), (7, 7), ("2.5%", 2)])
def test_validation_is_cut_out_of_train(tmp_path, split, size):
    path = labelled(tmp_path / "sorted.csv", {"a": 60, "b": 40})
    asked = {"split": split, "stratify": False, "seed": 0}
    found = load(train=path, validation=asked)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 100 - size, "validation": size}
    whole = load(train=path, splits=["train"])["train"]["text"][:]
    assert sorted([*found["train"]["text"], *found["validation"]["text"]]) == sorted(whole)
    again = load(train=path, validation=asked)
    assert again["validation"]["text"][:] == found["validation"]["text"][:]
    other = load(train=path, validation={**asked, "seed": 1})
    assert other["validation"]["text"][:] != found["validation"]["text"][:]
    alone = load(train=path, validation=asked, splits=["validation"])
    assert alone["validation"]["text"][:] == found["validation"]["text"][:]
    limited = load(train=path, validation=asked, limit=5)
    assert limited["validation"]["text"][:] == found["validation"]["text"][:]
    assert len(limited["train"]) == 5


def test_a_stratified_cut_has_every_class_on_both_sides(tmp_path):
    path = labelled(tmp_path / "sorted.csv", {"a": 80, "b": 17, "c": 2, "d": 1})
    said = []
    found = load(train=path, validation={"split": "10%", "stratify": True, "seed": 3}, said=said)
    assert Counter(found["validation"]["label"]) == {"a": 8, "b": 1, "c": 1}
    assert Counter(found["train"]["label"]) == {"a": 72, "b": 16, "c": 1, "d": 1}
    assert said == ["validation has no row of 1 classes that have a single row: 'd'"]
    said = []
    small = load(train=path, validation={"split": 1, "stratify": True, "seed": 3}, said=said)
    assert len(small["validation"]) == 3
    assert "3 rows in the place of 1" in said[-1]


def test_shares_sum_up_and_leave_a_row_on_each_side():
    for size in range(3, 38):
        found = shares(Counter(a=20, b=15, c=5), size)
        assert sum(found.values()) == size
        assert all(0 < count < whole for count, whole in zip(found.values(), (20, 15, 5), strict=True))
    assert cut(4, 2, 0, ["a", "a", "b", "b"]).tolist() == cut(4, 2, 0, ["a", "a", "b", "b"]).tolist()


def test_cuts_that_leave_nothing_are_refused(tmp_path):
    path = table(tmp_path / "a.csv", [("x", "a"), ("y", "b"), ("z", "c")])
    for split, stratify, message in [
        ("10%", False, "10% of the 3 rows of train are 0 rows"),
        (3, False, "3 of the 3 rows of train are 3 rows"),
        (1, True, "no class has two rows"),
    ]:
        asked = {"split": split, "stratify": stratify, "seed": 0}
        problem = failure(train=path, validation=asked)
        assert problem.where == "data.validation"
        assert message in problem.message
    assert "validation: {split: 10%}" in failure(path=path, validation="10%").hint


def test_options_of_files_are_passed_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text;label\ncaf\u00e9, good;1\nbad;0\n".encode("cp1252"))
    problem = failure(train=path, splits=["train"])
    assert "data.encoding: cp1252" in problem.hint
    found = load(train=path, splits=["train"], encoding="cp1252")["train"]
    assert found[:] == {"text": ["caf\u00e9, good", "bad"], "label": [1, 0]}
    assert found[:] == load(train=path, splits=["train"], encoding="cp1252", delimiter=";")["train"][:]
    wrong = failure(train=path, splits=["train"], encoding="cp1252", delimiter=",")
    assert "Expected 1 columns as in the header, found 2 in line 2" in wrong.message


def test_excel_files_are_read(tmp_path):
    rows = [("text", "label", "n"), ("good", 1, 0.5), (7, 0, 2), (), ("x", 1, None)]
    path = sheet(tmp_path / "a.xlsx", rows)
    found = load(train=path, text="text", splits=["train"])["train"]
    assert found[:] == {"text": ["good", "7", "x"], "label": [1, 0, 1], "n": [0.5, 2.0, None]}
    book = openpyxl.load_workbook(path)
    book.create_sheet("more")["A1"] = "text"
    book.save(tmp_path / "two.xlsx")
    assert "several sheets have cells (Sheet, more)" in failure(train=tmp_path / "two.xlsx").message
    unnamed = sheet(tmp_path / "b.xlsx", [("text", None), ("good", 1)])
    assert "must name each column once" in failure(train=unnamed).message
    (tmp_path / "c.xlsx").write_text("text,label\n")
    assert "no Excel workbook" in failure(train=tmp_path / "c.xlsx").message


def test_excel_without_openpyxl_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(Unreadable, match="openpyxl") as caught:
        excel.read(tmp_path / "a.xlsx")
    assert "pip install 'cook-compress[excel]'" in caught.value.hint
