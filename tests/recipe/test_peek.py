"""What `cook validate` knows of data: it refuses what a run would, and is silent where it is not sure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cook.errors import CookError
from cook.recipe import load_recipe, peek
from cook.recipe.tables import LIMIT, look

GOOD = "sentence,label\nfine,yes\nbad,no\n"


def recipe(folder: Path, model: Any = None, **data: Any) -> Any:
    return load_recipe(
        {
            "version": 1,
            "model": {"path": "some/bert", "task": "text-classification", **(model or {})},
            "data": {
                "train": str(folder / "train.csv"),
                "validation": str(folder / "val.csv"),
                "text": "sentence",
                **data,
            },
            "train": {"steps": 1},
            "output": {"path": str(folder / "out")},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).write_text(GOOD)
    return tmp_path


def head(folder: Path, **config: Any) -> dict[str, Any]:
    """A model section of a local model."""
    (folder / "bert").mkdir()
    known = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", **config}
    (folder / "bert" / "config.json").write_text(json.dumps(known))
    return {"path": str(folder / "bert")}


def refused(asked: Any) -> str:
    with pytest.raises(CookError) as caught:
        peek.check(asked)
    return str(caught.value)


def test_what_is_on_the_hub_is_named(folder: Path) -> None:
    assert peek.check(recipe(folder)) == ["not checked: model.path 'some/bert', which must be fetched first"]
    far = recipe(folder, path="owner/set", train="train", validation="test")
    assert "data.path 'owner/set'" in peek.check(far)[0]
    assert peek.check(recipe(folder, head(folder))) == []


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("column", ["text", "label"])
def test_a_column_that_is_not_there(folder: Path, split: str, column: str) -> None:
    (folder / f"{split}.csv").write_text(GOOD.replace("sentence" if column == "text" else "label", "other"))
    said = refused(recipe(folder))
    assert f"data.{column}: there is no column" in said
    assert f"in {split}.csv" in said
    assert "the columns are " in said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("val.tsv", "text\tlabel\nfine\tyes\n"),
        ("val.jsonl", '{"text": "fine", "label": 1}\n'),
        ("val.json", '[{"text": "fine", "label": 1}]'),
        ("val.txt", "fine\n"),
        ("val.parquet", None),
    ],
)
def test_every_kind_of_file_is_looked_at(folder: Path, name: str, text: str | None) -> None:
    if text is None:
        pyarrow.parquet.write_table(pa.table({"text": ["fine"], "label": [1]}), folder / name)
    else:
        (folder / name).write_text(text)
    said = refused(recipe(folder, validation=str(folder / name)))
    assert "data.text: there is no column 'sentence' in val." in said


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"validation": "validaton"}, "there is no split 'validaton'\n  did you mean 'validation'?"),
        ({"train": "training[:10%]"}, "there is no split 'training'"),
    ],
)
def test_splits_of_a_folder(folder: Path, value: dict[str, Any], words: str) -> None:
    (folder / "val.csv").rename(folder / "validation.csv")
    good = {"path": str(folder), "train": "train", "validation": "validation"}
    peek.check(recipe(folder, **good))
    assert words in refused(recipe(folder, **{**good, **value}))


def test_splits_of_one_file_and_of_the_digits(folder: Path) -> None:
    one = {"path": str(folder / "train.csv"), "train": "train[:50%]"}
    assert "there is no split 'validation'" in refused(recipe(folder, **one, validation="validation"))
    peek.check(recipe(folder, **one, validation="train[50%:]"))
    digits = {"path": "sklearn:digits", "train": "train", "text": None}
    assert "there is no split 'test'" in refused(recipe(folder, **digits, validation="test"))
    peek.check(recipe(folder, **digits, validation="validation"))


@pytest.mark.parametrize("text", ["", "sentence,label\n", "sentence,label\n\n"])
def test_a_file_without_rows(folder: Path, text: str) -> None:
    (folder / "val.csv").write_text(text)
    assert "has no rows" in refused(recipe(folder))


def test_a_label_column_without_labels(folder: Path) -> None:
    (folder / "val.csv").write_text("sentence,label\nfine,\nbad,  \n")
    assert "no row of val.csv has a label" in refused(recipe(folder))
    (folder / "val.csv").write_text("sentence,label\nfine,\nbad,no\n")  # for the reader to say
    peek.check(recipe(folder))


def test_more_labels_than_the_model_has_classes(folder: Path) -> None:
    (folder / "train.csv").write_text(GOOD + "odd,perhaps\n")
    model = head(folder)
    said = refused(recipe(folder, model))
    assert "the data has 3 labels ('no', 'perhaps', 'yes')" in said
    assert "the model in bert tells 2 classes apart ('LABEL_0', 'LABEL_1')" in said
    assert "model.head: new" in said
    peek.check(recipe(folder, {**model, "head": "new"}))
    peek.check(recipe(folder, model, limit=2))  # the third one may not be drawn
    peek.check(recipe(folder, model, train=[str(folder / "val.csv")]))
    for known in (
        {"label2id": {"a": 0, "b": 1, "c": 2}},
        {"architectures": ["BertModel"]},
        {"architectures": None},
    ):
        (folder / "bert" / "config.json").write_text(
            json.dumps({"architectures": ["BertForSequenceClassification"], **known})
        )
        peek.check(recipe(folder, model))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("val.csv", GOOD.replace(",", ";").encode()),
        ("val.csv", GOOD.replace(",", "|").encode()),
        ("val.csv", GOOD.encode("utf-16")),
        ("val.csv", GOOD.replace("sentence", "satz\xe9,sentence").encode("latin-1")),
        ("val.csv", GOOD.replace("sentence", " Sentence").encode()),
        ("val.csv", b'"sentence","label"\n"fine\n, or so","yes"\n'),
        ("val.csv", GOOD.encode("utf-8-sig")),
        ("val.csv", GOOD.replace("\n", "\r\n").encode()),
        ("val.tsv", b'sentence\tlabel\n"fine\tyes\n"bad\tno\n'),
        ("val.jsonl", b'{"label": "yes"}\n{"sentence": "fine", "label": "no"}\n'),
        ("val.jsonl", b"no JSON at all"),
        ("val.parquet", b"no parquet"),
        ("val.xlsx", b"PK"),
        ("val.csv", b"a" * 100 + b'"\nsentence",label\n' + b"x" * LIMIT),
    ],
)
def test_what_is_not_certain_is_left_to_the_reader(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    peek.check(recipe(folder, validation=str(folder / name)))


def test_a_large_file_is_known_by_its_first_line(folder: Path) -> None:
    (folder / "val.csv").write_text("text,label\n" + "fine,yes\n" * (LIMIT // 8))
    assert look(folder / "val.csv", "label").columns == ("text", "label")
    assert look(folder / "val.csv", "label").labels is None
    assert "no column 'sentence' in val.csv" in refused(recipe(folder))


def test_without_training_nothing_is_refused(folder: Path) -> None:
    asked = load_recipe({**recipe(folder, label="other").value, "train": None})
    assert peek.check(asked)


@pytest.mark.parametrize(
    ("passes", "noted"), [([], True), (None, True), ("absent", False), ([{"test.listen": None}], False)]
)
def test_an_empty_list_of_passes_is_noted(folder: Path, passes: Any, noted: bool) -> None:
    value = {key: item for key, item in recipe(folder).value.items() if key != "passes"}
    value |= {"teacher": "self"} if passes else {}
    read = load_recipe(value if passes == "absent" else {**value, "passes": passes})
    assert any("nothing is compressed" in note for note in read.notes) == noted
    assert load_recipe(read, ["train.seed=2"]).notes == read.notes
