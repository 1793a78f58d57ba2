"""Data augmentation for distillation: copies of rows in which words are replaced by similar ones.

After X. Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP
2020, section 3 and algorithm 1. Single-token words are replaced by single-token words, so a copy has the
length of its original, and its labels, token types and masks remain valid. It works on prepared rows,
independent of tasks.

The method determines replacements: `neighbours`, the nearest words in an embedding matrix, or `masked-lm`,
the most probable words of a masked language model for the copy with its chosen words masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from cook.data.augment.masked_words import MaskedWords
from cook.data.augment.words import Flags, Ids, Words, flat, words_of
from cook.data.rows import cache
from cook.data.tasks import Task
from cook.model.hub import load
from cook.sections import AugmentSection, TrainSection
from cook.teacher.teacher import Given, named

VERSION = 1
"""Part of every entry's key: incremented when the choice of words changes."""
ROWS = 10_000
"""Rows changed together, with one random stream."""
CHUNK = 256
"""Words whose neighbours are computed together."""

Candidates = Callable[[pa.Table, Flags], Ids]
"""Candidates for each token of these rows with its flag set, shape `(set flags, candidates)`."""


def nearest(embeddings: Tensor, words: Flags, count: int, wanted: Flags | None = None) -> Tensor:
    """The words nearest to each word by cosine, nearest first; a word is not its own neighbour.

    Args:
        embeddings: shape `(vocabulary, width)`.
        words: which ids are words, shape `(vocabulary,)` or shorter: other ids are never candidates.
        count: neighbours per word; fewer if the vocabulary has fewer other words.
        wanted: the words to find neighbours for, of the shape of `words`; None for all.

    Returns:
        Ids of shape `(len(words), neighbours)`; -1 for ids that are not wanted words.
    """
    known = torch.from_numpy(np.flatnonzero(words))
    # In float64 the result does not depend on the number of threads in a sum.
    unit = torch.nn.functional.normalize(embeddings[known].double(), dim=1)
    count = max(0, min(count, len(known) - 1))
    table = torch.full((len(words), count), -1)
    places = torch.arange(len(known)) if wanted is None else torch.from_numpy(wanted)[known].nonzero()[:, 0]
    for some in places.split(CHUNK):
        cosines = unit[some] @ unit.T
        cosines[torch.arange(len(some)), some] = -torch.inf
        table[known[some]] = known[cosines.topk(count).indices]
    return table


def chosen(alone: Flags, lengths: Ids, share: float, source: np.random.RandomState) -> Flags:
    """The words to replace: each with probability `share`, and at least one in a row that has any.

    Args:
        alone: the tokens of all rows that can be replaced.
        lengths: of the rows.
        share: from 0 to 1.
    """
    drawn = np.where(alone, source.random_sample(len(alone)), np.inf)
    row = np.repeat(np.arange(len(lengths)), lengths)
    lowest = np.full(len(lengths), np.inf)
    np.minimum.at(lowest, row, drawn)
    return alone & (drawn <= np.maximum(share, lowest)[row])


def replaced(ids: Ids, where: Flags, candidates: Ids, source: np.random.RandomState) -> Ids:
    """A copy of `ids` in which each token at `where` is replaced by a uniformly drawn candidate.

    Args:
        ids: the tokens of all rows.
        where: shape of `ids`.
        candidates: ids of shape `(set flags of where, candidates of each)`.
    """
    result = ids.copy()
    result[where] = candidates[
        np.arange(len(candidates)), source.randint(candidates.shape[1], size=len(candidates))
    ]
    return result


def augmented(
    rows: Dataset,
    task: Task,
    train: TrainSection,
    *,
    processor: Any,
    model: PreTrainedModel,
    teacher: Given,
    accelerator: Accelerator,
) -> Dataset:
    """The rows and the copies requested by `data.augment`: all originals, then copy 1, copy 2, ...

    The result is a function of its arguments, cached on disk and memory-mapped; an epoch over it is
    `1 + copies` times as long. Without `data.augment` the rows are returned.

    Args:
        rows: from `task.prepare`.
        train: the recipe's section, for its seed.
        processor: the tokenizer of the rows.
        model: the model meant by "self"; its word embeddings are used if there is no teacher.
        teacher: in any form that a session accepts; the first one's embeddings are used.
        accelerator: one process creates the entry, the others wait; the language model runs on its device.

    Raises:
        CookError: the rows are no text, or contain no replaceable word; the language model is invalid, or
            has another vocabulary.
    """
    asked = task.data.augment
    if asked is None:
        return rows
    if "input_ids" not in rows.column_names:
        hint = "leave data.augment out: it replaces words in texts"
        raise task.error("data.augment", f"there are no words in the data of {task.name}", hint)
    words = words_of(processor)
    total, without = _replaceable(rows, words)
    if not total:
        hint = "replaced are words that are one token of the vocabulary, neither special nor pieces"
        raise task.error("data.augment", "no word of the training data can be replaced", hint)
    identity, candidates = _source(rows, task, asked, words, processor, model, teacher, accelerator.device)
    seed = next(each for each in (asked.seed, train.data_seed, train.seed) if each is not None)
    key = cache.key(
        augment=VERSION,
        rows=cache.of_rows(rows, rows.column_names),
        words=cache.of_tensors({name: torch.from_numpy(flags) for name, flags in vars(words).items()}),
        source=identity,
        seed=seed,
        options={name: getattr(asked, name) for name in ("method", "copies", "share", "candidates")},
    )
    with accelerator.main_process_first():
        result = cache.stored(key, lambda: _tables(rows, words, candidates(), asked, seed))
    changed = _differing(rows, result)
    task.say(
        f"augmented: {asked.copies} copies of {len(rows):,} rows make {len(result):,}; "
        f"{changed / (asked.copies * total):.1%} of the words in them were replaced"
        + (f"; {without:,} rows have none to replace" if without else "")
    )
    return result


def _tables(rows: Dataset, words: Words, candidates: Candidates, asked: Any, seed: int) -> Iterator[pa.Table]:
    yield from _blocks(rows)
    for copy in range(1, asked.copies + 1):
        for number, table in enumerate(_blocks(rows)):
            # The stream of the legacy generator is guaranteed not to change, unlike that of newer ones.
            source = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, copy, number])))
            ids, lengths = flat(table["input_ids"])
            where = chosen(words.alone(ids, lengths), lengths, asked.share, source)
            values = pa.array(replaced(ids, where, candidates(table, where), source))
            offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
            field = table.schema.field("input_ids")
            column = pa.ListArray.from_arrays(offsets, values).cast(field.type)
            yield table.set_column(table.schema.get_field_index("input_ids"), field, column)


def _blocks(rows: Dataset) -> Iterator[pa.Table]:
    for table in rows.with_format("arrow").iter(batch_size=ROWS):
        yield table.replace_schema_metadata(None)


def _replaceable(rows: Dataset, words: Words) -> tuple[int, int]:
    """The number of replaceable words, and of rows without any."""
    total = without = 0
    if words.whole.sum() > 1:
        for table in _blocks(rows):
            ids, lengths = flat(table["input_ids"])
            row = np.repeat(np.arange(len(lengths)), lengths)
            found = np.bincount(row[words.alone(ids, lengths)], minlength=len(lengths))
            total, without = total + int(found.sum()), without + int((found == 0).sum())
    return total, without


def _differing(rows: Dataset, result: Dataset) -> int:
    """The number of tokens in all copies that differ from the originals."""
    tables, changed = result.with_format("arrow"), 0
    for number, table in enumerate(_blocks(rows)):
        own, start = flat(table["input_ids"])[0], number * ROWS
        for copy in range(len(rows), len(result), len(rows)):
            found = flat(tables[copy + start : copy + start + len(table)]["input_ids"])[0]
            changed += int((found != own).sum())
    return changed


def _source(
    rows: Dataset,
    task: Task,
    asked: AugmentSection,
    words: Words,
    processor: Any,
    model: PreTrainedModel,
    teacher: Given,
    device: torch.device,
) -> tuple[str, Callable[[], Candidates]]:
    """The source of similar words: its hash, and a function that prepares it if there is no entry yet."""
    if asked.method == "masked-lm":
        predict = MaskedWords(task, processor, words, asked, device)

        def masked() -> Candidates:
            count = f"{asked.copies * len(rows):,}"
            task.say(f"asking {asked.model} for words in {count} rows; they are kept for the next run")
            return predict

        return predict.identity, masked
    embeddings = _embeddings(task, model, teacher, words)

    def neighbours() -> Candidates:
        wanted = np.zeros_like(words.whole)
        for table in _blocks(rows):
            wanted[flat(table["input_ids"])[0]] = True
        near = nearest(embeddings, words.whole, asked.candidates, wanted).numpy()
        return lambda table, where: near[flat(table["input_ids"])[0][where]]

    return cache.of_tensors({"embeddings": embeddings}), neighbours


def _embeddings(task: Task, model: PreTrainedModel, teacher: Given, words: Words) -> Tensor:
    """The word embeddings of the (first) teacher, or of the model if there is none."""
    first = next(iter(named(teacher)), None)
    if first is None:
        if load.origin_of(model).new_head and not model.name_or_path:
            hint = "name a teacher, or use method: masked-lm"
            raise task.error(
                "data.augment.method", "the model starts from random weights: no word is near another", hint
            )
        task.say("augmentation finds similar words in the model's own embeddings, for there is no teacher")
    owner: Any = model if first is None or isinstance(first.model, str) else first.model
    found: Tensor = owner.get_input_embeddings().weight.detach().float().cpu()
    if not bool(found.isfinite().all()):
        hint = "look at the weights of the teacher, or of the model if there is none"
        raise task.error("data.augment", "the word embeddings are not finite: no word is near another", hint)
    if len(found) < len(words.whole):
        raise task.error(
            "data.augment",
            f"the tokenizer knows ids up to {len(words.whole) - 1}, there are {len(found)} word embeddings",
            "use the tokenizer that belongs to the model and its teacher",
        )
    return found
