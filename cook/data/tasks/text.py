"""Text as token ids: columns, lengths and padding. Shared by all tasks on text."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset

from cook.data.rows.sources import ErrorAt
from cook.model.hub.source import class_name
from cook.model.tokens.tokenizer import PlainText
from cook.sections import DataSection

BEHIND_PADDING = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod", "data2vec-text"}
    | {"ibert", "esm", "mpnet", "longformer", "luke", "mluke", "lilt", "layoutlmv3", "markuplm"}
)
"""The model types whose positions start after the padding token's id."""
LONGEST = 512
"""The limit on a model's own maximum length; `data.max_length` may exceed it."""
ROWS = 1000
"""Rows tokenised together."""


def columns(dataset: Dataset, data: DataSection, error: ErrorAt) -> list[str]:
    """The text columns: those named by the recipe, else the only text column that is not the label.

    Raises:
        CookError: a column is missing or has no text, or there is not exactly one.
    """
    texts = [name for name, feature in dataset.features.items() if _is_text(feature)]
    listed = f"the columns are {', '.join(dataset.column_names)}"
    if data.text is None:
        found = [name for name in texts if name != data.label]
        if len(found) == 1:
            return found
        what = f"several columns hold text ({', '.join(found)})" if found else "no column holds text"
        raise error("data.text", f"{what}; {listed}", "name one, or two for pairs: text: [first, second]")
    wanted = [data.text] if isinstance(data.text, str) else list(data.text)
    for name in wanted:
        if name not in dataset.features:
            raise error("data.text", f"there is no column {name!r}", listed)
        if name not in texts:
            raise error("data.text", f"column {name!r} holds {dataset.features[name]}, not text", listed)
    return wanted


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def positions(config: Any) -> int | None:
    """The maximum number of tokens of a model's positions; None if there is no limit."""
    found: int | None = getattr(config, "max_position_embeddings", None)
    if found is not None and found < 1:
        return None  # XLNet's value for no limit
    if found is not None and config.model_type in BEHIND_PADDING:
        return found - (config.pad_token_id or 0) - 1
    return found


def max_length(tokenizer: Any, config: Any, data: DataSection, error: ErrorAt) -> int:
    """Maximum tokens per example: `data.max_length`, else the limit of model and tokenizer, at most 512.

    Raises:
        CookError: the recipe requests more tokens than the model has positions.
    """
    most = positions(config) or LONGEST
    if data.max_length is None:
        return min(LONGEST, most, tokenizer.model_max_length)
    if data.max_length > most:
        raise error("data.max_length", f"{data.max_length} is more than the model's {most} positions")
    return data.max_length


def padding(tokenizer: Any, config: Any, error: ErrorAt, say: Callable[[str], None]) -> int:
    """The id to pad with; set in tokenizer and config if they lack one.

    Classifying decoders use the last token that is not this id, so the config's value has precedence; a model
    without one gets the tokenizer's, or its end of text (GPT-2 has nothing else).

    Raises:
        CookError: the tokenizer has neither.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            hint = "set pad_token in its tokenizer_config.json, or name another in model.tokenizer"
            raise error("model.tokenizer", "the tokenizer has no padding token and no end of text", hint)
        tokenizer.pad_token = tokenizer.eos_token
        say(f"the tokenizer has no padding token: its end of text, {tokenizer.eos_token!r}, serves as one")
    known = getattr(config, "pad_token_id", None)
    if known is None or known < 0:
        config.pad_token_id = tokenizer.pad_token_id
    return int(config.pad_token_id)


def encode(
    tokenizer: Any, texts: Sequence[Sequence[str]], *, length: int, pad: int
) -> Iterator[dict[str, pa.Array]]:
    """Token ids of all rows, in blocks of ROWS.

    A special token written in a text (`</s>` in a review) is read as plain characters. Those that the
    tokenizer adds itself are unaffected.

    Args:
        tokenizer: not modified, because its own truncation setting is saved with it.
        texts: one or two columns of equal length.
        length: maximum tokens per row; of a pair the longer text is truncated first.
        pad: used for a row without any token.

    Yields:
        `input_ids`, `length`, `cut` (whether the row was truncated), and `token_type_ids` if the tokenizer
        returns them. The attention mask follows from `length`.
    """
    tokenizer = copy.deepcopy(tokenizer)
    rows = pa.list_(pa.int32())
    options = {"return_attention_mask": False, "split_special_tokens": True}
    plain = PlainText(
        tokenizer.all_special_tokens,
        tokenizer.all_special_ids,
        lambda each: tokenizer(each, add_special_tokens=False, **options)["input_ids"],
    )
    for start in range(0, len(texts[0]), ROWS):
        block = [[plain(each) for each in column[start : start + ROWS]] for column in texts]
        found = tokenizer(*block, truncation=True, max_length=length, **options)
        lists = [ids or [pad] for ids in found["input_ids"]]
        result = {
            "input_ids": pa.array(lists, rows),
            "length": pa.array([len(ids) for ids in lists], pa.int32()),
            "cut": pa.array(_cut(tokenizer, found, block, length, options), pa.bool_()),
        }
        if "token_type_ids" in found:
            types = [kinds or [0] for kinds in found["token_type_ids"]]
            result["token_type_ids"] = pa.array(types, rows)
        yield result


def _cut(
    tokenizer: Any, found: Any, block: Sequence[Sequence[str]], length: int, options: dict[str, Any]
) -> list[bool]:
    """Which rows of a block were truncated."""
    if found.encodings is not None:
        return [bool(each.overflowing) for each in found.encodings]
    # A tokenizer without a backend does not report it: only rows of the full length can be truncated.
    full = [len(ids) >= length for ids in found["input_ids"]]
    for number in (number for number, is_full in enumerate(full) if is_full):
        whole = tokenizer(*(column[number] for column in block), **options)["input_ids"]
        full[number] = len(whole) > length
    return full


def written_specials(tokenizer: Any, texts: Sequence[Sequence[str]]) -> tuple[int, str]:
    """The number of rows with a special token of the tokenizer in their text, and the first such token."""
    specials = [each for each in tokenizer.all_special_tokens if len(each) > 1]
    rows, first = 0, ""
    for row in zip(*texts, strict=True):
        named = next((token for token in specials for each in row if token in each), None)
        rows, first = rows + (named is not None), first or named or ""
    return rows, first


def accepted(auto_class: str, config: Any) -> frozenset[str]:
    """The argument names of a model's forward, from the config it is built from; empty if unknown.

    Args:
        auto_class: the transformers class that loads the model.
    """
    import transformers

    name = class_name(getattr(transformers, auto_class), config)
    kind = getattr(transformers, name, None) if name else None
    return frozenset() if kind is None else frozenset(inspect.signature(kind.forward).parameters)


def padding_side(tokenizer: Any, takes: Collection[str]) -> str:
    """The padding side of batches: the tokenizer's, but right for models with absolute positions.

    A model that takes `position_ids` numbers positions from the first column of a batch by default. Left
    padding would shift the positions of a text depending on the lengths of other texts in its batch.

    Args:
        takes: argument names of the model's forward.
    """
    return "right" if "position_ids" in takes else str(tokenizer.padding_side)


def pad(rows: Sequence[Sequence[int]], value: int, side: str) -> torch.Tensor:
    """Rows of different lengths as one tensor, shape `(rows, longest)`, padded with `value`."""
    longest = max(map(len, rows))
    if side == "left":
        return torch.tensor([[value] * (longest - len(row)) + list(row) for row in rows])
    return torch.tensor([list(row) + [value] * (longest - len(row)) for row in rows])


def attention(lengths: Sequence[int], side: str) -> torch.Tensor:
    """1 for tokens and 0 for padding, shape `(rows, longest)`."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return (mask.flip(1) if side == "left" else mask).long()
