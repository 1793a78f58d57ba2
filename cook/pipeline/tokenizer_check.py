"""Whether tokenizers read alike, and whether one is that of a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

from transformers import PreTrainedModel

from cook.model.hub import load
from cook.recipe import Recipe
from cook.say import Say

SAMPLE = 200
"""Texts that two tokenizers read for a comparison."""
SPECIAL = ("pad", "bos", "eos", "cls", "sep")


def difference(one: Any, other: Any, texts: Iterable[str] = ()) -> str | None:
    """In what two tokenizers differ, in words; None where they read alike.

    The same vocabulary is not enough: case, normalisation and special tokens decide what a text becomes.

    Args:
        texts: some are read by both.
    """
    if one.get_vocab() != other.get_vocab():
        return "their vocabularies are not the same"
    for text in islice(texts, SAMPLE):
        first, second = (each(text, split_special_tokens=True)["input_ids"] for each in (one, other))
        if first != second:
            return f"{text[:60]!r} becomes {first[:12]}, and {second[:12]} with the other"
    return None


def needs_segments(teacher: PreTrainedModel, student: PreTrainedModel) -> bool:
    """Whether a teacher tells segments apart and gets none, since the student takes none."""

    def tells(model: PreTrainedModel) -> bool:
        kinds = getattr(model.config, "type_vocab_size", None)
        return "token_type_ids" in inspect.signature(model.forward).parameters and (kinds or 0) > 1

    return tells(teacher) and not tells(student)


def check(recipe: Recipe, config: Any, processor: Any, texts: Iterable[str], say: Say) -> None:
    """Compare a tokenizer that `model.tokenizer` names with the model's own, or with its config.

    Args:
        say: takes a line for what makes it doubtful.

    Raises:
        CookError: the model's folder has another tokenizer.
    """
    named, path = recipe.model.tokenizer, recipe.model.path
    if not hasattr(processor, "get_vocab"):
        return
    if named is not None and path is not None:
        own = load.load_processor(replace(recipe.model, tokenizer=None), "tokenizer")
        if own is not None and (found := difference(processor, own, texts)):
            raise recipe.error(
                "model.tokenizer",
                f"{named} is not the tokenizer of the model: {found}",
                "leave model.tokenizer out: the model's folder has its tokenizer",
            )
        if own is not None:
            return
    for note in notes(processor, config):
        say(note)


def notes(processor: Any, config: Any) -> list[str]:
    """What makes it doubtful that a tokenizer is that of a model without one, a line each."""
    found = []
    for name in SPECIAL:
        ours, theirs = getattr(config, f"{name}_token_id", None), getattr(processor, f"{name}_token_id", None)
        if isinstance(ours, int) and theirs is not None and ours != theirs and ours >= 0:
            found.append(f"{name}_token_id is {theirs} in the tokenizer and {ours} in the model's config")
    known = getattr(config, "vocab_size", None)
    if known is not None and len(processor) < known // 2:
        found.append(f"the tokenizer has {len(processor):,} tokens, the model {known:,}")
    return [f"{each}: is it the tokenizer of this model?" for each in found]
