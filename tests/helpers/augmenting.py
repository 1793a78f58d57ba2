"""What the tests of augmentation share: small data, a call, a masked language model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM

from cook.data.augment import texts
from cook.errors import CookError
from cook.recipe.section import Section
from tests.helpers import tiny
from tests.helpers.sections import bound

OPTIONS = {"method": "neighbours", "copies": 3, "share": 0.3, "candidates": 4, "seed": None, "model": None}
TRAIN = SimpleNamespace(seed=0, data_seed=None)
TEXTS = [
    "good film",
    "the plot was very bad",
    "dull",
    "a lovely story",
    "unknown",
    "the cast is fine film",
] * 5


def prepared(texts=TEXTS, tokenizer=None, *, second=None, say=lambda line: None, **options):
    """A task with `data.augment`, and its rows; `second` are the other texts of pairs."""
    columns = {
        "a": list(texts),
        **({"b": second} if second else {}),
        "label": [n % 2 for n in range(len(texts))],
    }
    dataset = Dataset.from_dict(columns)
    asked = Section({**OPTIONS, **options})
    task = bound(dataset, say=say, text=["a", "b"] if second else "a", augment=asked)
    return task, task.prepare(dataset, tokenizer or tiny.tokenizer())


def made(task, rows, *, tokenizer=None, model=None, teacher="self", train=TRAIN):
    return texts.augmented(
        rows,
        task,
        train,
        processor=tokenizer or tiny.tokenizer(),
        model=model or tiny.model(),
        teacher=teacher,
        accelerator=Accelerator(cpu=True),
    )


def parts(result, rows):
    """The copies in a result, the first being the originals."""
    ids = result["input_ids"][:]
    return [ids[start : start + len(rows)] for start in range(0, len(result), len(rows))]


def refusal(*inputs, **options) -> CookError:
    with pytest.raises(CookError) as caught:
        made(*inputs, **options)
    return caught.value


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """The folder of a tiny masked language model, its weights as large as trained ones."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=23, max_position_embeddings=16, **sizes))
    for parameter in model.parameters():
        parameter.data.mul_(20 if parameter.ndim == 2 else 1)
    path = tmp_path_factory.mktemp("masked")
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path
