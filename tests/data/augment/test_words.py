"""Which tokens are whole words, for vocabularies of every convention, against the text itself."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cook.data.augment.words import BYTES, END, PIECE, SPACE, Words, convention, words_of
from tests.helpers import tiny

TEXTS = [
    "the film is good , and the plot's fine.",
    "it doesn't (really) work: a dull-looking café story of 2002 !",
    "the café wasn't there; the films were dull",
    "हिन्दी film की कहानी good",
    "naïve “quoted” words 🎬 and the end",
    "",
]
CORPUS = [*TEXTS * 20, "the film good plot dull story café 2002 हिन्दी"]


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one convention, trained on CORPUS: small enough to cut most words, not all."""
    special = {"unk_token": "<unk>", "pad_token": "<pad>"}
    if kind == PIECE:
        inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=140, special_tokens=list(special.values()))
    elif kind == SPACE:
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=110, special_tokens=list(special.values()), unk_token="<unk>"
        )
    elif kind == END:
        inner = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix=END))
        inner.normalizer = normalizers.NFC()
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(
            vocab_size=150, special_tokens=list(special.values()), end_of_word_suffix=END
        )
    else:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=360, special_tokens=list(special.values()), initial_alphabet=alphabet
        )
    inner.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def part_of_a_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char)[0] == "M" or char in "'\u2019"


def stands_alone(text: str, start: int, end: int, *, space: bool) -> bool:
    """Whether text[start:end] is a word of letters with nothing of a word on either side.

    With `space`, whether it holds the space before it as well.
    """
    word = text[start:end].strip(" ")
    if space and not text[start:end].startswith(" "):
        return False
    start += text[start:end].index(word)
    if not word or not all(part_of_a_word(char) for char in word) or {"'", "\u2019"} & set(word):
        return False
    around = text[max(0, start - 1) : start] + text[end : end + 1]
    return not any(map(part_of_a_word, around))


@pytest.mark.parametrize("kind", [PIECE, BYTES, SPACE, END])
def test_the_words_that_stand_alone_are_those_of_the_text(kind):
    tokenizer = trained(kind)
    assert convention(tokenizer.get_vocab()) == kind
    found = tokenizer(TEXTS, return_offsets_mapping=True)
    ids = [index for row in found["input_ids"] for index in row]
    lengths = np.array([len(row) for row in found["input_ids"]])
    alone = words_of(tokenizer).alone(np.array(ids), lengths)
    expected = []
    for text, row, spans in zip(TEXTS, found["input_ids"], found["offset_mapping"], strict=True):
        for index, (start, end) in zip(row, spans, strict=True):
            if kind == SPACE:  # it puts a space before the text
                start, end = start and start + 1, end + 1
            told = stands_alone(
                f" {text}" if kind == SPACE else text, start, end, space=kind in (BYTES, SPACE)
            )
            expected.append(told and index != tokenizer.unk_token_id)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    wrong = [(token, a) for token, a, b in zip(tokens, alone.tolist(), expected, strict=True) if a != b]
    assert not wrong
    assert 5 < sum(expected) < len(expected) - 5


def test_words_of_a_plain_vocabulary_are_all_but_the_special_tokens():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["film plot", "new"])
    words = words_of(tokenizer)
    names = tokenizer.convert_ids_to_tokens(np.flatnonzero(words.whole).tolist())
    assert names == tiny.WORDS
    assert not words.joins.any()
    assert not words.opens.any()


def test_word_pieces_punctuation_and_contractions():
    tokens = [*tiny.SPECIAL, "film", "##s", ",", "'", "do", "n", "t", "2002", "[unused1]", "中", "-", "a"]
    inner = Tokenizer(
        models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]")
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **names)
    row = "[CLS] film ##s , film , do n ' t 2002 [unused1] 中 a - film ' [SEP] film".split()
    alone = words_of(tokenizer).alone(
        np.array(tokenizer.convert_tokens_to_ids(row)), np.array([len(row) - 1, 1])
    )
    told = [token for token, flag in zip(row, alone, strict=True) if flag]
    assert told == ["film", "do", "2002", "中", "a", "film"]
    assert alone[4]
    assert alone[-1], "the next row does not go on with the word"


def test_rows_end_words():
    words = Words(*(np.array(flags, dtype=bool) for flags in ([1, 0, 0], [0, 1, 0], [0, 0, 1])))
    ids = np.array([0, 1, 0, 2, 0])
    assert words.alone(ids, np.array([5])).tolist() == [False, False, True, False, False]
    assert words.alone(ids, np.array([1, 3, 0, 1, 0])).tolist() == [True, False, True, False, True]
    assert words.alone(ids[:0], np.array([0, 0])).tolist() == []
