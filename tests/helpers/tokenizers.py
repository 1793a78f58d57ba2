"""Tokenizers of every kind, trained on the spot on a fixed English text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ("wordpiece", "bytes", "bpe", "unigram", "wordlevel")
SIZE = 600
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
NAMES = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}


@cache
def lines() -> tuple[str, ...]:
    """Plain English to train on."""
    text = (Path(__file__).parents[1] / "fixtures" / "text.md").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())


@cache
def backend(kind: str) -> str:
    """The content of a tokenizer.json; tokens are added behind the vocabulary too."""
    options = {"vocab_size": SIZE, "special_tokens": SPECIAL, "show_progress": False}
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**options)
    elif kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **options)
    elif kind == "bpe":
        made = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.decoder = decoders.BPEDecoder()
        trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", **options)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **options)
    else:
        made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**options)
    made.train_from_iterator(lines(), trainer)
    made.add_tokens(["<user>", "<film>"])
    ends = [(name, made.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    made.post_processor = (
        processors.BertProcessing(*ends)
        if kind == "wordpiece"
        else processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    )
    made.enable_padding(pad_id=made.token_to_id("[PAD]"), pad_token="[PAD]")
    return made.to_str()


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of one of KINDS, with about SIZE tokens."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend(kind)), **NAMES)
