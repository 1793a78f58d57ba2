"""A tokenizer with fewer tokens reads what is covered as before, whatever kind it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cook.errors import CookError
from cook.model.tokens.tokenizer import Lexicon
from tests.helpers import tokenizers

every_kind = pytest.mark.parametrize("kind", tokenizers.KINDS)


def kept_of(lexicon: Lexicon, texts, alphabet: bool = True) -> list[int]:
    """The tokens of some texts and what always stays with them."""
    seen = {int(number) for ids in lexicon.encode(texts) for number in ids}
    return sorted(lexicon.closed(seen | lexicon.fixed | (lexicon.alphabet if alphabet else set())))


@every_kind
def test_covered_texts_are_read_as_before(kind):
    tokenizer = tokenizers.tokenizer(kind)
    lexicon = Lexicon(tokenizer)
    texts = list(tokenizers.lines()[:12])
    kept = kept_of(lexicon, texts)
    assert len(kept) < len(tokenizer)
    pruned = lexicon.pruned(kept)
    assert len(pruned) == len(kept)
    assert type(pruned) is type(tokenizer)
    assert pruned.special_tokens_map == tokenizer.special_tokens_map
    for text, other in zip(texts, reversed(texts), strict=True):
        for args in ((text,), (text, other)):
            before, after = tokenizer(*args), pruned(*args)
            assert [kept[number] for number in after["input_ids"]] == before["input_ids"]
            assert after.encodings[0].type_ids == before.encodings[0].type_ids
        assert pruned.decode(pruned(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
    padded = pruned(texts, padding=True)["input_ids"]
    assert {len(row) for row in padded} == {max(len(row) for row in padded)}
    assert min(padded, key=lambda row: row[-1])[-1] == pruned.pad_token_id


WORDS = sorted({word for line in tokenizers.lines() for word in line.split()})


@every_kind
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_of_kept_tokens_is_read_as_before(kind, data):
    # The vocabulary need not come from the text: only from texts that share its tokens.
    lexicon = Lexicon(tokenizers.tokenizer(kind))
    words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
    corpus = data.draw(st.lists(words, min_size=1, max_size=4))
    text = data.draw(
        st.sampled_from(corpus).flatmap(lambda line: st.permutations(line.split())).map(" ".join)
    )
    kept = kept_of(lexicon, corpus, alphabet=data.draw(st.booleans()) or lexicon.needs_alphabet)
    [before] = lexicon.encode([text])
    assume(set(before.tolist()) <= set(kept))
    # A word that WordPiece cannot read may be read once a longer beginning of it is gone.
    assume(kind != "wordpiece" or lexicon.tokens["[UNK]"] not in before)
    [after] = Lexicon(lexicon.pruned(kept)).encode([text])
    assert np.asarray(kept)[after].tolist() == before.tolist()


@every_kind
@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1, max_size=30))
def test_any_other_text_is_read_without_new_failures(kind, text):
    if kind == "wordlevel":
        return  # whole words alone are read
    tokenizer = tokenizers.tokenizer(kind)
    lexicon = Lexicon(tokenizer)
    pruned = Lexicon(lexicon.pruned(kept_of(lexicon, [])))
    unknown = lexicon.tokens["[UNK]"]
    [before], [after] = lexicon.encode([text]), pruned.encode([text])
    if unknown not in before:
        assert pruned.tokens["[UNK]"] not in after
    if kind == "bytes":
        assert pruned.encoder.decode(after.tolist()) == lexicon.encoder.decode(before.tolist())


def test_a_merge_goes_with_its_parts_and_no_part_without_its_merge():
    lexicon = Lexicon(tokenizers.tokenizer("bytes"))
    longest = max(lexicon.tokens, key=len)
    kept = sorted(lexicon.closed({lexicon.tokens[longest]} | lexicon.fixed | lexicon.alphabet))
    pruned = lexicon.pruned(kept)
    assert pruned.tokenize(longest.replace("Ġ", " ")) == [longest]
    model = json.loads(pruned.backend_tokenizer.to_str())["model"]
    results = {left + right for left, right in model["merges"]}
    letters = {token for token in model["vocab"] if len(token) == 1}
    assert set(model["vocab"]) - set(tokenizers.SPECIAL) == results | letters
    assert len(letters) == 256


@every_kind
def test_it_comes_back_from_a_folder(kind, tmp_path):
    lexicon = Lexicon(tokenizers.tokenizer(kind))
    kept = kept_of(lexicon, tokenizers.lines()[:3])
    pruned = lexicon.pruned(kept)
    pruned.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == pruned.get_vocab()
    assert again(tokenizers.lines()[0])["input_ids"] == pruned(tokenizers.lines()[0])["input_ids"]
    assert again.convert_tokens_to_ids("<user>") == len(kept) - 2


def test_what_it_cannot_read_is_refused():
    with pytest.raises(CookError, match=r"no tokenizer\.json"):
        Lexicon(object())
    with pytest.raises(CookError, match="no token 'zzz'"):
        Lexicon(tokenizers.tokenizer("wordpiece")).named("zzz")
    with pytest.raises(CookError) as caught:
        Lexicon(tokenizers.tokenizer("wordpiece")).named("[UNX]")
    assert "[UNK]" in (caught.value.hint or "")


def test_holes_in_the_numbers_close():
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    lexicon = Lexicon(tokenizer)
    assert lexicon.size == 4
    assert lexicon.pruned([0, 3]).get_vocab() == {"a": 0, "[UNK]": 1}
