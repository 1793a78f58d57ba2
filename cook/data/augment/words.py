"""Determines which tokens of a vocabulary are whole words, from its spelling convention.

Four conventions are known: continuation pieces are marked (`##ing`, WordPiece), tokens at the start of a
word are marked (`Ġfilm` of byte-level BPE, `▁film` of SentencePiece), tokens at the end of one are marked
(`film</w>`), or none is and every token is a word. The most frequent mark determines the convention.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from tokenizers.decoders import ByteLevel

Flags = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.integer[Any]]

PIECE, BYTES, SPACE, END = "##", "Ġ", "▁", "</w>"
APOSTROPHES = frozenset("'\u2019")
BROKEN = "\ufffd"
"""Characters that decode from bytes that form a letter only with those of the next token."""


@dataclass(frozen=True)
class Words:
    """Properties of each id of a vocabulary; arrays of shape `(highest id + 1,)`.

    Attributes:
        whole: is a word of letters or digits by itself. Special and added tokens are not.
        joins: belongs to the word before it.
        opens: the token after it belongs to the same word.
    """

    whole: Flags
    joins: Flags
    opens: Flags

    def alone(self, ids: Ids, lengths: Ids) -> Flags:
        """Which tokens are whole words in their row: neither neighbour belongs to them.

        Contractions are one word in several pieces: in `do n ' t` neither `n` nor `t` stands alone.

        Args:
            ids: the tokens of all rows, concatenated.
            lengths: of the rows; they add up to `len(ids)`.
        """
        ends = np.zeros(len(ids) + 1, dtype=bool)
        ends[np.cumsum(lengths)] = ends[0] = True
        after = np.append(self.joins[ids[1:]], False)[: len(ids)] & ~ends[1:]
        before = np.append(False, self.opens[ids[:-1]])[: len(ids)] & ~ends[:-1]
        return self.whole[ids] & ~after & ~before


def flat(column: pa.ChunkedArray) -> tuple[Ids, Ids]:
    """Flatten a column of lists: (all values concatenated, the length of each list)."""
    lengths = pa.compute.list_value_length(column)
    return column.combine_chunks().flatten().to_numpy(), lengths.to_numpy()


def words_of(tokenizer: Any) -> Words:
    """The words of a tokenizer with `get_vocab`, `get_added_vocab` and `all_special_ids`."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    never = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    mark = convention(vocabulary)
    flags = np.zeros((3, max(vocabulary.values()) + 1), dtype=bool)
    for token, index in vocabulary.items():
        if index not in never:
            flags[:, index] = _kind(token, mark)
    return Words(*flags)


def convention(vocabulary: Mapping[str, int]) -> str | None:
    """The most frequent mark among the tokens: PIECE, BYTES, SPACE or END; None without marks."""
    counts = {
        mark: sum(len(token) > len(mark) and token.startswith(mark) for token in vocabulary)
        for mark in (PIECE, BYTES, SPACE)
    }
    counts[END] = sum(len(token) > len(END) and token.endswith(END) for token in vocabulary)
    mark = max(counts, key=lambda each: counts[each])
    return mark if counts[mark] else None


def _kind(token: str, mark: str | None) -> tuple[bool, bool, bool]:
    """(whole, joins, opens) of one token."""
    apostrophe = token in APOSTROPHES
    if mark in (BYTES, SPACE):
        begins = token.startswith(mark)
        text = ByteLevel().decode([token])[begins:] if mark == BYTES else token[begins:]
        # Punctuation after a word has no mark either, but belongs to no word.
        return begins and _is_word(text), not begins and (apostrophe or _has_letter(text)), False
    if mark == PIECE:
        return _is_word(token), token.startswith(PIECE) or apostrophe, apostrophe
    if mark == END:
        apostrophe = token == f"'{END}"
        ends = token.endswith(END)
        return ends and _is_word(token.removesuffix(END)), apostrophe, apostrophe or not ends
    return _is_word(token), apostrophe, apostrophe


def _is_word(text: str) -> bool:
    return text.isalnum() or (text != "" and all(map(_is_letter, text)))


def _has_letter(text: str) -> bool:
    return any(map(_is_letter, text)) or BROKEN in text


def _is_letter(char: str) -> bool:
    return (
        char.isalnum() or unicodedata.category(char)[0] == "M"
    )  # marks are parts of letters in many scripts
