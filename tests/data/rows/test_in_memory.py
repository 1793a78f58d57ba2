"""Data that is given to `cook.apply` in memory: what is taken, what is warned of, what is refused."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest

import cook
from cook.data.rows.in_memory import dataset
from cook.errors import CookError
from tests.helpers import tiny

TEXTS = ["good film", "bad plot", "fine story", "awful cast"]
COLUMNS = {"sentence": TEXTS, "label": [1, 0, 1, 0]}
RECORDS = [{"sentence": text, "label": label} for text, label in zip(TEXTS, COLUMNS["label"], strict=True)]
FRAME = pandas.DataFrame(COLUMNS, index=[7, 5, 3, 1])


def apply(data: Any, **section: Any) -> Any:
    config = {"version": 1, "data": section, "train": {"steps": 1, "batch_size": 4}}
    return cook.apply(tiny.model(), config, data=data, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(
    "rows",
    [
        FRAME,
        FRAME.set_index("label", drop=False),
        FRAME.astype({"label": "category"}),
        COLUMNS,
        {"sentence": np.array(TEXTS), "label": FRAME["label"]},
        RECORDS,
        tuple(RECORDS),
        (row for row in RECORDS),
        datasets.Dataset.from_dict(COLUMNS),
        datasets.Dataset.from_dict(COLUMNS).with_format("torch"),
        datasets.Dataset.from_dict(COLUMNS).to_iterable_dataset(),
        pa.table(COLUMNS),
        polars.DataFrame(COLUMNS),
        polars.DataFrame(COLUMNS).with_columns(polars.col("sentence").cast(polars.Categorical)),
    ],
    ids=lambda rows: type(rows).__name__,
)
def test_rows_of_every_kind_are_the_same_table(rows):
    found = dataset(rows, "train")
    assert found.column_names == ["sentence", "label"]
    assert found[:] == COLUMNS


def test_a_dataframe_and_a_generator_are_trained_on():
    more = pandas.DataFrame({"sentence": ["lovely film", "dull plot"], "label": [1, 0]})
    result = apply({"train": FRAME, "validation": (row for row in more.to_dict("records"))})
    assert result.report.data["rows"] == {"train": 4, "validation": 2}


def test_missing_values_in_memory_are_refused_or_dropped():
    for gap in (None, float("nan"), pandas.NA, "", " "):
        frame = pandas.DataFrame({"sentence": [*TEXTS, gap], "label": [1, 0, 1, 0, 1]})
        with pytest.raises(CookError, match=r"row 4 of train \(counted from 0\)"):
            apply({"train": frame})
        with pytest.raises(CookError, match=r"row 4 of train \(counted from 0\)"):
            apply({"train": frame.to_dict("records")})
    labels = pandas.DataFrame({"sentence": TEXTS, "label": [1, None, 0, 1]})
    with pytest.raises(CookError, match=r"'label' is empty in 1 of 4 rows of train: row 1"):
        apply({"train": labels})
    with pytest.warns(UserWarning, match="1 of 4 rows are left out, which have no label"):
        result = apply({"train": labels}, missing="drop")
    assert result.report.data["rows"] == {"train": 3}


def test_missing_values_of_a_polars_frame_are_refused():
    for gap in (None, ""):
        frame = polars.DataFrame({"sentence": [*TEXTS, gap], "label": [1, 0, 1, 0, 1]})
        with pytest.raises(CookError, match=r"row 4 of train \(counted from 0\)"):
            apply({"train": frame})
    numbers = polars.DataFrame({"sentence": TEXTS, "label": [1.0, float("nan"), 0.0, 1.0]})
    with pytest.raises(CookError, match=r"'label' is empty in 1 of 4 rows of train: row 1"):
        apply({"train": numbers})


def test_a_lazy_frame_is_refused_with_what_to_do():
    with pytest.raises(CookError, match="found a LazyFrame, expected rows"):
        apply({"train": polars.DataFrame(COLUMNS).lazy()})


def test_validation_is_cut_out_of_rows_in_memory():
    result = apply({"train": FRAME}, validation={"split": "50%", "stratify": True})
    assert result.report.data["rows"] == {"train": 2, "validation": 2}


def test_what_is_odd_is_a_warning():
    with pytest.warns(UserWarning, match="4 of 4 validation rows have the same text"):
        apply({"train": FRAME, "validation": COLUMNS})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("train.csv", "found a str"),
        (3, "found a int"),
        ([("good", 1)], "row 0 .* is a tuple, expected a dict"),
        ({"sentence": "good", "label": [1]}, "column 'sentence' is a str"),
        ({"sentence": {0: "good"}, "label": {0: 1}}, "column 'sentence' is a dict"),
        ({"sentence": ["good"], "label": [1, 0]}, "differ in length"),
        (pandas.DataFrame([["good", 1]]), r"columns of the DataFrame are \[0, 1\]"),
        ([{"sentence": "good", "label": 1}, {"sentence": "x", "label": "a"}], "cannot be read as a table"),
        ([], "has no rows"),
        (FRAME["label"], "row 0 .* is a"),
    ],
)
def test_other_rows_are_refused_with_what_is_accepted(rows, message):
    with pytest.raises(CookError, match=message) as caught:
        apply({"train": rows})
    assert caught.value.hint or "no rows" in message
