"""Text as token ids: which columns, how long, padded with what. Shared by all tasks on text."""

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
"""The model types that count positions from behind the padding token's number."""
LONGEST = 512
"""The cap on a model's own maximum length; `data.max_length` may go beyond."""
ROWS = 1000
"""Rows tokenised at a time."""


def columns(dataset: Dataset, data: DataSection, error: ErrorAt) -> list[str]:
    """The text columns: the ones that the recipe names, else the only one with text that is no label.

    Raises:
        CookError: a column is missing or holds no text, or there is not exactly one.
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
    """How many tokens a model can tell the places of; None where there is no limit."""
    found: int | None = getattr(config, "max_position_embeddings", None)
    if found is not None and found < 1:
        return None  # what XLNet says of itself
    if found is not None and config.model_type in BEHIND_PADDING:
        return found - (config.pad_token_id or 0) - 1
    return found


def max_length(tokenizer: Any, config: Any, data: DataSection, error: ErrorAt) -> int:
    """Tokens of an example at most: `data.max_length`, else what model and tokenizer can, up to 512.

    Raises:
        CookError: the recipe asks for more than the model has positions.
    """
    most = positions(config) or LONGEST
    if data.max_length is None:
        return min(LONGEST, most, tokenizer.model_max_length)
    if data.max_length > most:
        raise error("data.max_length", f"{data.max_length} is more than the model's {most} positions")
    return data.max_length


def padding(tokenizer: Any, config: Any, error: ErrorAt, say: Callable[[str], None]) -> int:
    """The id to pad with; tokenizer and config are completed if they lack one.

    Decoders that classify look for the last token that is not this id, so the config's word counts, and
    a model without one gets the tokenizer's, or its end of text (GPT-2 has nothing else).

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
    """Token ids of all rows, ROWS at a time.

    A special token that stands in a text (`</s>` in a review) is read as the characters that it is written
    with. Those that the tokenizer adds itself are there as always.

    Args:
        tokenizer: is left as it was: its own truncation setting is saved with it.
        texts: one or two columns of equal length.
        length: tokens of a row at most; of a pair the longer text is cut first.
        pad: stands for a row without any token.

    Yields:
        `input_ids`, `length`, `cut` (whether tokens were left out), and `token_type_ids` if the tokenizer
        gives them. The attention mask follows from `length`.
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
    """Which rows of a block lost tokens."""
    if found.encodings is not None:
        return [bool(each.overflowing) for each in found.encodings]
    # A tokenizer without a backend does not say: only rows of the full length can have lost some.
    full = [len(ids) >= length for ids in found["input_ids"]]
    for number in (number for number, is_full in enumerate(full) if is_full):
        whole = tokenizer(*(column[number] for column in block), **options)["input_ids"]
        full[number] = len(whole) > length
    return full


def written_specials(tokenizer: Any, texts: Sequence[Sequence[str]]) -> tuple[int, str]:
    """How many rows have a special token of the tokenizer written in their text, and the first such token."""
    specials = [each for each in tokenizer.all_special_tokens if len(each) > 1]
    rows, first = 0, ""
    for row in zip(*texts, strict=True):
        named = next((token for token in specials for each in row if token in each), None)
        rows, first = rows + (named is not None), first or named or ""
    return rows, first


def accepted(auto_class: str, config: Any) -> frozenset[str]:
    """What the forward of a model takes, by the config that the model is built from; empty if unknown.

    Args:
        auto_class: the class of transformers that loads the model.
    """
    import transformers

    name = class_name(getattr(transformers, auto_class), config)
    kind = getattr(transformers, name, None) if name else None
    return frozenset() if kind is None else frozenset(inspect.signature(kind.forward).parameters)


def padding_side(tokenizer: Any, takes: Collection[str]) -> str:
    """On which side batches are padded: the tokenizer's, but on the right for models of absolute positions.

    A model that takes `position_ids` counts positions from the first column of a batch when it is given none.
    Padding on the left would move the positions of a text by the length of the other texts in its batch.

    Args:
        takes: what the forward of the model takes.
    """
    return "right" if "position_ids" in takes else str(tokenizer.padding_side)


def pad(rows: Sequence[Sequence[int]], value: int, side: str) -> torch.Tensor:
    """Rows of different lengths as one tensor, shape `(rows, longest)`, filled up with `value`."""
    longest = max(map(len, rows))
    if side == "left":
        return torch.tensor([[value] * (longest - len(row)) + list(row) for row in rows])
    return torch.tensor([list(row) + [value] * (longest - len(row)) for row in rows])


def attention(lengths: Sequence[int], side: str) -> torch.Tensor:
    """1 for tokens and 0 for padding, shape `(rows, longest)`."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return (mask.flip(1) if side == "left" else mask).long()
