"""Tiny models, tokenizers and tables made on the spot: what most tests run on.

Each family keeps the traits that passes stumble over: GPT-2's Conv1D and tied head, Llama's
grouped keys and gated FFN, ViT's convolution, BERT's pooler.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

WORDS = "good great fine lovely bad awful poor dull film plot cast story the a is was very not".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAMILIES = ("bert", "gpt2", "llama", "vit")
LABELS = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the 18 words above and BERT's special tokens."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", model_max_length=32, **names)


def model(family: str = "bert", *, layers: int = 2, width: int = 16, seed: int = 0) -> PreTrainedModel:
    """A classifier of two classes with random weights; `family` is one of FAMILIES."""
    torch.manual_seed(seed)
    vocabulary = {"vocab_size": len(SPECIAL + WORDS), "pad_token_id": 0, **LABELS}
    if family == "bert":
        return BertForSequenceClassification(
            BertConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=2 * width,
                max_position_embeddings=32,
                **vocabulary,
            )
        )
    if family == "gpt2":
        ends = {"bos_token_id": 2, "eos_token_id": 3}
        return GPT2ForSequenceClassification(
            GPT2Config(n_embd=width, n_layer=layers, n_head=4, n_positions=32, **ends, **vocabulary)
        )
    if family == "llama":
        return LlamaForSequenceClassification(
            LlamaConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=2 * width,
                max_position_embeddings=32,
                **vocabulary,
            )
        )
    if family == "vit":
        return ViTForImageClassification(
            ViTConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=2 * width,
                image_size=8,
                patch_size=4,
                num_channels=1,
                **LABELS,
            )
        )
    raise ValueError(f"no tiny model of family {family!r}; there are {FAMILIES}")


def batch(family: str = "bert", *, size: int = 4, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random batch with labels for `model(family)`; texts are padded to different lengths."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (size,), generator=generator)
    if family == "vit":
        return {"pixel_values": torch.randn(size, 1, 8, 8, generator=generator), "labels": labels}
    tokens = torch.randint(5, len(SPECIAL + WORDS), (size, length), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(size):
        mask[row, length - row % 3 :] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}


def table(path: Path, rows: int = 64, *, seed: int = 0, rest: Sequence[str] = WORDS[8:]) -> Path:
    """A tab-separated table `sentence, label` that a tiny model can learn: good words are positive.

    Args:
        rest: the other words of a sentence, which say nothing.
    """
    source = random.Random(seed)
    lines = ["sentence\tlabel"]
    for _ in range(rows):
        label = source.randint(0, 1)
        mood = source.choice(WORDS[:4] if label else WORDS[4:8])
        others = source.choices(rest, k=source.randint(2, 8))
        lines.append(f"{' '.join([*others, mood])}\t{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def folder(path: Path, family: str = "bert", **options) -> Path:
    """`model(family)` and its tokenizer, saved as a model folder."""
    model(family, **options).save_pretrained(path)
    if family != "vit":
        tokenizer().save_pretrained(path)
    return path
