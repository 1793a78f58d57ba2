"""Text classification: one label per text or pair of texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute
import tokenizers
import torch
import transformers
from datasets import Dataset

from cook.data.files.cells import is_missing
from cook.data.rows import cache
from cook.data.tasks import text
from cook.data.tasks.classification import Classification

UNKNOWN = 0.2
"""The fraction of unknown tokens above which it is reported."""


class TextClassification(Classification):
    """One label per text. `data.text` names a column, or two for pairs."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._pad, self._side = 0, "right"

    def columns(self, dataset: Dataset) -> dict[str, list[str]]:
        return {"data.text": text.columns(dataset, self.data, self.error), **super().columns(dataset)}

    def prepare(self, dataset: Dataset, processor: Any | None) -> Dataset:
        """`input_ids`, `labels`, `length`, and `token_type_ids` if the tokenizer returns them."""
        if processor is None:
            raise self.error(
                "model.tokenizer",
                "the model comes without a tokenizer",
                "name a folder or a hub id that has one; in Python, give tokenizer=",
            )
        columns = text.columns(dataset, self.data, self.error)
        self._pad = text.padding(processor, self.config, self.error, self.say)
        takes = text.accepted(self.auto_class, self.config)
        self._side = text.padding_side(processor, takes)
        segments = self._takes_segments(processor, takes, pair=len(columns) > 1)
        length = text.max_length(processor, self.config, self.data, self.error)
        labels = self._label_ids(dataset)
        key = cache.key(
            task=self.name,
            rows=cache.of_rows(dataset, columns),
            labels=labels,
            processor=cache.of_processor(processor),
            versions=[transformers.__version__, tokenizers.__version__],
            columns=columns,
            length=length,
            pad=self._pad,
            cut=processor.truncation_side,
            segments=segments,
        )
        texts = [self._texts(dataset, column) for column in columns]
        written, token = text.written_specials(processor, texts)
        if written:
            self.say(
                f"{written:,} of {len(dataset):,} rows have special tokens such as {token!r} in their text;"
                " they are read as plain text"
            )

        def build() -> Iterator[pa.Table]:
            start = 0
            for block in text.encode(processor, texts, length=length, pad=self._pad):
                end = start + len(block["length"])
                if not segments:
                    block.pop("token_type_ids", None)
                yield pa.table({**block, "labels": pa.array(labels[start:end], pa.int64())})
                start = end

        rows = cache.stored(key, build)
        self._check_vocabulary(rows)
        self._check_segments(rows)
        self._tell_unknown(rows, processor)
        return rows

    def cut(self, rows: Dataset) -> int:
        return sum(rows["cut"][:])

    def texts(self, dataset: Dataset) -> Iterator[str]:
        for column in text.columns(dataset, self.data, self.error):
            yield from (each for each in dataset[column][:] if not is_missing(each))

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Padded to the longest of `rows`, on the tokenizer's side; tensors of shape `(rows, longest)`."""
        batch = {
            "input_ids": text.pad([row["input_ids"] for row in rows], self._pad, self._side),
            "attention_mask": text.attention([row["length"] for row in rows], self._side),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = text.pad([row["token_type_ids"] for row in rows], 0, self._side)
        return batch

    def _texts(self, dataset: Dataset, column: str) -> list[str]:
        texts: list[str] = dataset[column][:]
        if None in texts:
            row = texts.index(None)  # type: ignore[arg-type]
            raise self.error("data.text", f"column {column!r} has rows without text, the first is row {row}")
        return texts

    def _takes_segments(self, processor: Any, takes: Collection[str], *, pair: bool) -> bool:
        """Whether the model distinguishes segments; otherwise it gets none."""
        kinds = getattr(self.config, "type_vocab_size", None)
        if (not takes or "token_type_ids" in takes) and kinds not in (0, 1):
            return True
        if pair and "token_type_ids" in processor.model_input_names:
            self.say("the model tells no segments apart: the token_type_ids of the tokenizer are left out")
        return False

    def _check_segments(self, rows: Dataset) -> None:
        kinds = getattr(self.config, "type_vocab_size", None)
        if kinds is None or "token_type_ids" not in rows.column_names:
            return
        if (highest := _highest(rows, "token_type_ids")) >= kinds:
            raise self.error(
                "model.tokenizer",
                f"the tokenizer gives the segment {highest}, the model knows {kinds}: 0 to {kinds - 1}",
                "is it the tokenizer of this model?",
            )

    def _tell_unknown(self, rows: Dataset, processor: Any) -> None:
        """Report a high fraction of unknown tokens: the tokenizer may be for another language or model."""
        if processor.unk_token_id is None:
            return
        unknown = total = 0
        for chunk in rows.data["input_ids"].chunks:
            ids = chunk.flatten()
            unknown += pa.compute.sum(pa.compute.equal(ids, processor.unk_token_id)).as_py() or 0
            total += len(ids)
        if unknown > UNKNOWN * total:
            self.say(
                f"{unknown / total:.0%} of the tokens of {len(rows):,} rows are unknown to the tokenizer"
                f" ({processor.unk_token!r}): is it made for these texts?"
            )

    def _check_vocabulary(self, rows: Dataset) -> None:
        known = getattr(self.config, "vocab_size", None)
        highest = _highest(rows, "input_ids")
        if known is not None and highest >= known:
            raise self.error(
                "model.tokenizer",
                f"the tokenizer gives the id {highest}, the model knows {known}",
                "is it the tokenizer of this model?",
            )


def _highest(rows: Dataset, column: str) -> int:
    return max(pa.compute.max(chunk.flatten()).as_py() for chunk in rows.data[column].chunks)
