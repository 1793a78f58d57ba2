"""Reads and prunes fast tokenizers: which tokens are required, and a tokenizer with fewer tokens.

Everything is read from and written to `tokenizer.json`, so the result is an ordinary tokenizer. The meaning
of a vocabulary depends on its model: WordPiece takes the longest match, byte-level and other BPE joins
pieces by ranked merges, Unigram finds the most probable pieces, WordLevel has whole words.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from cook.errors import CookError, nearest

KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BLOCK = 1000

Ids = npt.NDArray[np.int64]


class PlainText:
    """Escapes texts so that special tokens written in them are read as plain text.

    Most tokenizers have an option for that. A Unigram model has its special tokens among its pieces, which
    are matched in any text; for it a blank is inserted after the first character of each.

    Args:
        specials: the special tokens.
        ids: their ids.
        read: returns the token ids of a text, without template tokens.
    """

    def __init__(self, specials: Iterable[str], ids: Iterable[int], read: Callable[[str], Sequence[int]]):
        self.specials = [each for each in specials if len(each) > 1]
        self.ids, self.read = set(ids), read

    def __call__(self, text: str) -> str:
        if not any(each in text for each in self.specials) or not self.ids.intersection(self.read(text)):
            return text
        for each in self.specials:
            text = text.replace(each, f"{each[0]} {each[1:]}")
        return text


class Lexicon:
    """The tokens of a tokenizer by id, and their dependencies.

    Args:
        tokenizer: a fast tokenizer of transformers; not modified.

    Attributes:
        tokens: id of each token, added ones included.
        size: the highest id plus one.

    Raises:
        CookError: the tokenizer is slow, or of a kind whose vocabulary cook cannot read.
    """

    def __init__(self, tokenizer: Any):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise CookError(
                f"{type(tokenizer).__name__} has no tokenizer.json to rewrite",
                hint="load it as a fast tokenizer: AutoTokenizer.from_pretrained(path, use_fast=True)",
            )
        self.tokenizer = tokenizer
        self.value: dict[str, Any] = json.loads(backend.to_str())
        self.model: dict[str, Any] = self.value["model"]
        self.kind: str = self.model.get("type", "unknown")
        if self.kind not in KINDS:
            raise CookError(f"a {self.kind} tokenizer cannot be pruned", hint=f"known: {', '.join(KINDS)}")
        self.tokens: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.size = max(self.tokens.values(), default=-1) + 1

    @cached_property
    def encoder(self) -> Tokenizer:
        """The tokenizer for whole texts: no truncation, no padding, special tokens are read as plain text."""
        whole: Tokenizer = Tokenizer.from_str(json.dumps(self.value))
        whole.encode_special_tokens = True
        whole.no_truncation()
        whole.no_padding()
        return whole

    def encode(self, texts: Iterable[str], *, template: bool = False) -> Iterator[Ids]:
        """The token ids of each text, with or without template tokens."""
        special = [token for token in self.value["added_tokens"] if token.get("special")]
        plain = PlainText(
            [token["content"] for token in special],
            [token["id"] for token in special],
            lambda each: self.encoder.encode(each, add_special_tokens=False).ids,
        )
        for block in _blocks(map(plain, texts)):
            for found in self.encoder.encode_batch_fast(block, add_special_tokens=template):
                yield np.asarray(found.ids, dtype=np.int64)

    @cached_property
    def fixed(self) -> set[int]:
        """Ids of special and added tokens, the unknown token, and the tokens of template and padding."""
        found = {token["id"] for token in self.value["added_tokens"]} | set(self.tokenizer.all_special_ids)
        names = [self.model.get("unk_token"), (self.value["padding"] or {}).get("pad_token")]
        found |= {self.tokens[name] for name in names if name in self.tokens}
        if self.kind == "Unigram":
            found |= {self.model["unk_id"]} - {None}
            # The score of an unknown character is relative to that of the least probable piece.
            scores = [score for _, score in self.model["vocab"]]
            found |= {scores.index(min(scores))}
        for ids, _ in _numbered(self.value["post_processor"]):
            found.update(ids)
        return found

    @cached_property
    def alphabet(self) -> set[int]:
        """The characters or bytes from which any text can be composed; empty if tokens are whole words."""
        if self.kind == "WordLevel":
            return set()
        return {number for token, number in self.tokens.items() if self._is_letter(token)}

    @property
    def needs_alphabet(self) -> bool:
        """Whether a text with a removed character could not be encoded at all."""
        return self.kind == "BPE" and not self.model.get("unk_token")

    def closed(self, kept: Iterable[int]) -> set[int]:
        """`kept`, and for BPE all tokens that their merges need: parts, recursively, down to characters."""
        result = set(kept)
        waiting = list(result)
        while waiting:
            for part in self._parts.get(waiting.pop(), ()):
                if part not in result:
                    result.add(part)
                    waiting.append(part)
        return result

    def within(self, text: str) -> set[int]:
        """The tokens that could be part of a text, by their characters."""
        normalizer = self.encoder.normalizer
        read = normalizer.normalize_str(text) if normalizer is not None else text
        prefix = self.model.get("continuing_subword_prefix") or ""
        return {number for token, number in self.tokens.items() if token.removeprefix(prefix) in read}

    def named(self, token: str) -> int:
        """The id of a token.

        Raises:
            CookError: there is none; the message names the nearest tokens.
        """
        if token not in self.tokens:
            hint = nearest(token, self.tokens) or "write it as the vocabulary does: ##ing, Ġfilm"
            raise CookError(f"the tokenizer has no token {token!r}", hint=hint)
        return self.tokens[token]

    def pruned(self, kept: Sequence[int]) -> Any:
        """The tokenizer with these tokens only, renumbered in this order, as loaded from a folder.

        Args:
            kept: ids in increasing order, closed, with all of `fixed`.

        Raises:
            CookError: the tokenizers library assigns other ids.
        """
        new = {old: number for number, old in enumerate(kept)}
        expected = {token: new[old] for token, old in self.tokens.items() if old in new}
        result = copy.deepcopy(self.tokenizer)
        result._tokenizer = Tokenizer.from_str(json.dumps(self._rewritten(new)))
        with tempfile.TemporaryDirectory() as folder:
            result.save_pretrained(folder)
            result = type(self.tokenizer).from_pretrained(folder)
        result.name_or_path = self.tokenizer.name_or_path
        if result.get_vocab() != expected:
            raise CookError(
                f"the tokens of this {type(result).__name__} cannot be numbered anew",
                hint="added tokens have to follow the vocabulary, or be part of it",
            )
        return result

    @cached_property
    def _parts(self) -> dict[int, set[int]]:
        """For each BPE token, the parts of every merge that produces it."""
        parts: dict[int, set[int]] = {}
        for left, right in self._merges:
            whole = self.tokens[self._joined(left, right)]
            parts.setdefault(whole, set()).update((self.tokens[left], self.tokens[right]))
        return parts

    @property
    def _merges(self) -> Iterator[tuple[str, str]]:
        for merge in self.model.get("merges", ()):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            yield left, right

    def _joined(self, left: str, right: str) -> str:
        return left + right.removeprefix(self.model.get("continuing_subword_prefix") or "")

    def _is_letter(self, token: str) -> bool:
        if _BYTE.fullmatch(token):
            return True
        inner = token.removeprefix(self.model.get("continuing_subword_prefix") or "")
        inner = inner.removesuffix(self.model.get("end_of_word_suffix") or "")
        return len(inner) == 1

    def _rewritten(self, new: Mapping[int, int]) -> dict[str, Any]:
        """The content of `tokenizer.json` with only the tokens in `new` (old id -> new id)."""
        value = copy.deepcopy(self.value)
        model = value["model"]
        if self.kind == "Unigram":
            model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in new]
            if model["unk_id"] is not None:
                model["unk_id"] = new[model["unk_id"]]
        else:
            model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
        if self.kind == "BPE":
            left = model["vocab"]
            whole = [(a, b, self._joined(a, b)) for a, b in self._merges]
            model["merges"] = [[a, b] for a, b, c in whole if a in left and b in left and c in left]
        for token in value["added_tokens"]:
            token["id"] = new[token["id"]]
        if value["padding"]:
            value["padding"]["pad_id"] = new[value["padding"]["pad_id"]]
        for ids, put in _numbered(value["post_processor"]):
            put([new[old] for old in ids])
        return value


def count_tokens(ids: Iterable[Ids], size: int) -> tuple[Tensor, int]:
    """How often each of `size` tokens occurs, int64 [size], and the number of texts.

    Args:
        ids: the tokens of each text.
    """
    counts, texts = np.zeros(size, dtype=np.int64), 0
    for found in ids:
        np.add.at(counts, found, 1)
        texts += 1
    return torch.from_numpy(counts), texts


def _numbered(processor: Any) -> Iterator[tuple[list[int], Any]]:
    """Every token id list in a post-processor, and a function that replaces it."""
    if not processor:
        return
    for inner in processor.get("processors", ()):
        yield from _numbered(inner)
    for special in (processor.get("special_tokens") or {}).values():
        yield special["ids"], lambda ids, at=special: at.__setitem__("ids", ids)
    for name in ("sep", "cls"):  # of BertProcessing and RobertaProcessing: [token, number]
        if name in processor:
            pair = processor[name]
            yield [pair[1]], lambda ids, at=pair: at.__setitem__(1, ids[0])


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for text in texts:
        block.append(text)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block
