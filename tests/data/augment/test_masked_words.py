"""Words that a masked language model puts in, against the model run on one row at a time."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, BertForMaskedLM

from tests.helpers import tiny
from tests.helpers.augmenting import TEXTS, made, masked, parts, prepared, refusal
from tests.helpers.sections import entries, own_cache

__all__ = ["masked", "own_cache"]


@pytest.fixture(scope="module", params=["bert", "distilbert", "roberta", "mobilebert"])
def family(request, tmp_path_factory):
    """Masked language models whose heads differ: MobileBERT's calls no output projection."""
    torch.manual_seed(3)
    width = (
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
        if request.param == "distilbert"
        else {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    )
    narrow = {"embedding_size": 8, "intra_bottleneck_size": 8} if request.param == "mobilebert" else {}
    config = AutoConfig.for_model(
        request.param,
        vocab_size=23,
        max_position_embeddings=40,
        pad_token_id=0,
        type_vocab_size=2,
        **width,
        **narrow,
    )
    model = AutoModelForMaskedLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(20 if parameter.ndim == 2 else 1)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("budget", [1, 2048])
def test_words_become_what_a_masked_language_model_says(family, budget, monkeypatch):
    monkeypatch.setattr("cook.data.augment.masked_words.TOKENS", budget)
    tokenizer = tiny.tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    task, rows = prepared(tokenizer=tokenizer, second=TEXTS[::-1], method="masked-lm", model=str(family))
    original, *copies = parts(made(task, rows, tokenizer=tokenizer), rows)
    assert original == rows["input_ids"][:]
    model = AutoModelForMaskedLM.from_pretrained(family).eval()
    words = torch.arange(23) >= 5
    seen = 0
    for copy in copies:
        for old, types, new in zip(original, rows["token_type_ids"][:], copy, strict=True):
            places = [place for place, token in enumerate(old) if token != new[place]]
            inputs = {"input_ids": torch.tensor([[4 if at in places else old[at] for at in range(len(old))]])}
            if model.config.model_type != "distilbert":
                inputs["token_type_ids"] = torch.tensor([types])
            with torch.no_grad():
                logits = model(**inputs).logits[0]
            for place in places:
                allowed = logits[place].masked_fill(~words, -torch.inf)
                allowed[old[place]] = -torch.inf
                assert allowed[new[place]] >= allowed.sort(descending=True).values[3] - 1e-4
                seen += 1
    assert seen > 50


def test_masked_copies_are_cached_by_weights(masked, tmp_path, own_cache):
    lines: list[str] = []
    task, rows = prepared(method="masked-lm", model=str(masked), say=lines.append)
    first = made(task, rows)
    assert made(task, rows).cache_files == first.cache_files
    assert sum("for words in 90 rows" in line for line in lines) == 1, (
        "the second time there is nothing to ask"
    )
    shutil.copytree(masked, tmp_path / "moved")
    moved, _ = prepared(method="masked-lm", model=str(tmp_path / "moved"))
    assert made(moved, rows).cache_files == first.cache_files, "the place does not count"
    model = BertForMaskedLM.from_pretrained(masked)
    model.get_input_embeddings().weight.data[7] += 5
    model.save_pretrained(tmp_path / "moved")
    assert made(moved, rows).cache_files != first.cache_files


def broken(masked, path, kind):
    """A folder that will not do."""
    shutil.copytree(masked, path)
    if kind == "a classifier":
        tiny.model().save_pretrained(path)
    elif kind == "a decoder":
        (path / "model.safetensors").unlink()
        tiny.model("gpt2").save_pretrained(path)
    elif kind == "no tokenizer":
        for file in path.glob("tokenizer*"):
            file.unlink()
    elif kind == "another vocabulary":
        other = tiny.tokenizer()
        other.add_tokens(["more"])
        other.save_pretrained(path)
    elif kind == "no mask":
        tokenizer = tiny.tokenizer()
        tokenizer.mask_token = None
        tokenizer.save_pretrained(path)
    elif kind == "few embeddings":
        model = BertForMaskedLM.from_pretrained(masked)
        model.resize_token_embeddings(20)
        model.save_pretrained(path)
    elif kind == "no numbers":
        model = BertForMaskedLM.from_pretrained(masked)
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[4] = torch.nan
        model.save_pretrained(path)
    elif kind == "nothing":
        shutil.rmtree(path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("a classifier", "is no masked language model: its head would start from random weights"),
        ("a decoder", "is of a kind that AutoModelForMaskedLM does not know"),
        ("no tokenizer", "comes without a tokenizer"),
        ("another vocabulary", "(24 tokens) differs from the student's (23 tokens)"),
        ("no mask", "has no mask token"),
        ("few embeddings", "ids up to 22, the model knows 20"),
        ("no numbers", "is not a number"),
        ("nothing", "there is no folder"),
    ],
)
def test_a_model_that_will_not_do_is_refused(masked, tmp_path, own_cache, kind, said):
    path = broken(masked, tmp_path / "model", kind)
    task, rows = prepared(method="masked-lm", model=str(path))
    before = entries(own_cache)
    error = refusal(task, rows)
    assert said in error.message
    assert error.where == "data.augment.model"
    assert entries(own_cache) == before


def test_rows_longer_than_the_masked_model_are_refused(masked):
    task, rows = prepared(["good film " * 8], method="masked-lm", model=str(masked))
    assert "an example has 18 tokens, the language model takes 16" in refusal(task, rows).message
