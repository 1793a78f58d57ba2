"""Vocabulary pruning: what stays, in whole runs and at once, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import cook
from cook.errors import CookError
from cook.model.tokens.tokenizer import Lexicon, count_tokens
from cook.pipeline.evaluate import evaluate
from cook.prune.vocabulary import kept_tokens
from cook.recipe import load_recipe
from tests.helpers import tiny, tokenizers

STRANGER = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer(text, return_tensors="pt")
logits = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**ids).logits
assert "cook" not in sys.modules
print(json.dumps([ids["input_ids"].tolist(), logits.tolist(), tokenizer.decode(ids["input_ids"][0])]))
"""


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 22), max_size=6), max_size=6), minimum=st.integers(1, 4))
def test_kept_tokens_against_counting_by_hand(rows, minimum):
    lexicon = Lexicon(tiny.tokenizer())
    counts, texts = count_tokens(map(torch.tensor, rows), 23)
    flat = [number for row in rows for number in row]
    slow = sorted({number for number in flat if flat.count(number) >= minimum} | {2, 22})
    assert texts == len(rows)
    assert kept_tokens(counts, minimum, [2, 22], lexicon).tolist() == slow


def pruned(model: Any, tokenizer: Any, **options: Any) -> Any:
    return cook.apply(model, {"version": 1, "passes": [{"prune.vocabulary": options}]}, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_a_language_model_and_every_kind_of_tokenizer(kind, tmp_path):
    tokenizer = tokenizers.tokenizer(kind)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    # More rows than tokens, as models are padded: those leave as well.
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer) + 9, **sizes)).eval()
    text = " ".join(tokenizers.lines()[:4])
    (tmp_path / "texts.txt").write_text(f"{text}\n\n", encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=200)["input_ids"]
    hidden, logits = (model.bert(ids).last_hidden_state, model(ids).logits)
    result = pruned(model, tokenizer, corpora=[str(tmp_path / "texts.txt")], keep=["<film>"])
    facts = result.report.passes[0].facts
    new = result.tokenizer(text, return_tensors="pt", truncation=True, max_length=200)["input_ids"]
    assert result.tokenizer.decode(new[0]) == tokenizer.decode(ids[0])
    assert torch.equal(model.bert(new).last_hidden_state, hidden)
    kept = torch.tensor(
        tokenizer.convert_tokens_to_ids(result.tokenizer.convert_ids_to_tokens(range(len(result.tokenizer))))
    )
    assert torch.allclose(model(new).logits, logits[..., kept], atol=1e-6)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert facts["tokens_after"] == len(result.tokenizer) == model.config.vocab_size < facts["tokens_before"]
    assert facts["parameters_gone"] == (facts["tokens_before"] - facts["tokens_after"]) * 17
    assert (facts["texts"], facts["covered"], facts["own_tokens_gone"]) == (1, 1.0, 0)


def test_rare_tokens_become_smaller_pieces(tmp_path):
    tokenizer = tokenizers.tokenizer("bytes")
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=2, **ends)
    (tmp_path / "texts.txt").write_text("the pass the pass the model\n", encoding="utf-8")
    result = pruned(GPT2LMHeadModel(config), tokenizer, corpora=[str(tmp_path / "texts.txt")], minimum=2)
    tokens = result.tokenizer.tokenize("the pass the model")
    assert "Ġpass" in tokens
    assert "Ġmodel" in tokenizer.tokenize("the pass the model")
    assert "Ġmodel" not in tokens
    assert "".join(tokens) == "theĠpassĠtheĠmodel"
    assert 0 < result.report.passes[0].facts["covered"] < 1


def test_a_word_that_was_unknown_stays_unknown(tmp_path):
    # `abc` begins with `ab`, after which nothing goes on; without it, `a` and `##bc` would read the word.
    tokens = ["[UNK]", "[PAD]", "a", "b", "x", "ab", "##bc", "never"]
    inner = Tokenizer(models.WordPiece({token: at for at, token in enumerate(tokens)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    (tmp_path / "texts.txt").write_text("abc\nxbc a\n", encoding="utf-8")
    config = GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, eos_token_id=1, bos_token_id=1)
    model = GPT2LMHeadModel(config)
    result = pruned(model, tokenizer, corpora=[str(tmp_path / "texts.txt")])
    assert result.tokenizer.tokenize("abc xbc") == tokenizer.tokenize("abc xbc") == ["[UNK]", "x", "##bc"]
    assert "ab" in result.tokenizer.get_vocab()
    assert "never" not in result.tokenizer.get_vocab()


def recipe(root, **changes: Any) -> dict[str, Any]:
    """On tables that never use `film` and `not`; a text to validate on has `film` all the same."""
    rest = tiny.WORDS[9:-1]
    tiny.table(root / "train.tsv", 48, rest=rest)
    with tiny.table(root / "validation.tsv", 16, seed=1, rest=rest).open("a", encoding="utf-8") as rows:
        rows.write("the film was good\t1\n")
    return {
        "version": 1,
        "model": {"path": str(tiny.folder(root / "model")), "task": "text-classification"},
        "data": {"train": str(root / "train.tsv"), "validation": str(root / "validation.tsv")},
        "train": {"steps": 3, "batch_size": 8, "device": "cpu"},
        "eval": {"latency": False},
        "passes": [{"prune.vocabulary": {"corpora": [str(root / "train.tsv")]}}],
        "output": {"path": str(root / "out")},
        **changes,
    }


def test_a_stranger_reads_the_folder_and_cook_eval_agrees(tmp_path, clean_processes):
    report = cook.run(recipe(tmp_path), say=lambda _: None, progress=False)
    facts = report.passes[0].facts
    assert (facts["tokens_before"], facts["tokens_after"], facts["own_tokens_gone"]) == (23, 21, 1)
    assert (
        facts["parameters_gone"] == 2 * 16 == report.model.before.parameters - report.model.after.parameters
    )
    assert report.reload.plain
    assert evaluate(tmp_path / "out", tmp_path / "out" / "recipe.yaml") == report.model.after.metrics
    text = "the plot was very good"
    done = clean_processes.run(STRANGER, tmp_path / "out", text, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    ids, logits, decoded = json.loads(done.stderr.splitlines()[-1])
    old = tiny.tokenizer()(text)["input_ids"]
    film = 5 + tiny.WORDS.index("film")
    assert ids == [[number - (number > film) for number in old]]
    assert decoded == tiny.tokenizer().decode(old)
    model = tiny.model()
    model = type(model).from_pretrained(tmp_path / "out").eval()
    assert model(torch.tensor(ids)).logits.tolist() == logits


@pytest.mark.usefixtures("clean_processes")
def test_it_composes_with_pruned_and_rounded_embeddings_and_a_teacher(tmp_path):
    passes = [
        {"distill.logits": {}},
        {"prune.weights": {"sparsity": 0.5, "include": ["embeddings", "ffn"], "end": "70%"}},
        {"prune.vocabulary": {}},
        {"quant.qat": {"include": ["attention"]}},
    ]
    made = recipe(tmp_path, passes=passes, teacher="self")
    report = cook.run(made, say=lambda _: None, progress=False)
    assert report.passes[2].facts["tokens_after"] == 22
    assert report.passes[1].facts["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert report.reload.max_rel_difference <= 1e-3
    assert evaluate(tmp_path / "out", tmp_path / "out" / "recipe.yaml") == pytest.approx(
        report.model.after.metrics
    )


def test_a_rounded_head_that_shares_its_weight_loses_its_columns(tmp_path):
    tokenizer = tokenizers.tokenizer("bytes")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
    )
    (tmp_path / "texts.txt").write_text("\n".join(tokenizers.lines()[:5]), encoding="utf-8")
    passes = [
        {"quant.qat": {"include": ["lm_head"], "activations": None}},
        {"prune.vocabulary": {"corpora": [str(tmp_path / "texts.txt")]}},
    ]
    model = GPT2LMHeadModel(config).eval()
    result = cook.apply(model, {"version": 1, "passes": passes}, tokenizer=tokenizer)
    ids = result.tokenizer("the pass", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape[-1] == len(result.tokenizer) == model.transformer.wte.num_embeddings


def test_the_plan_says_at_most(tmp_path):
    planned = cook.pipeline.plan(load_recipe(recipe(tmp_path)))
    assert planned.after["sizes"] == "at most"
    assert planned.rows[0]["sizes"] == "at most"
    assert planned.rows[0]["parameters"] == 23 * 16
    assert "the run counts them" in planned.rows[0]["note"]


def test_what_cannot_work_is_refused(tmp_path):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n", encoding="utf-8")
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\xfa")
    table = tiny.table(tmp_path / "table.tsv", 4)
    words = tmp_path / "words.txt"
    words.write_text("good film", encoding="utf-8")
    larger = tiny.tokenizer()
    larger.add_tokens(["<user>"])
    cases = [
        ({}, tokenizer, "no texts to count", "corpora"),
        ({"corpora": [str(tmp_path / "word.txt")]}, tokenizer, "there is no", "corpora"),
        ({"corpora": [str(empty)]}, tokenizer, "no text in them", "corpora"),
        ({"corpora": [str(broken)]}, tokenizer, "not UTF-8", "corpora"),
        ({"corpora": [str(tmp_path)]}, tokenizer, "cannot be read", "corpora"),
        ({"corpora": [str(table)]}, tokenizer, "is a table", "corpora"),
        ({"corpora": [str(words)], "keep": ["fil"]}, tokenizer, "no token 'fil'", "keep"),
        ({"corpora": [str(words)]}, None, "needs the model's tokenizer", "passes[0]"),
        ({"corpora": [str(words)]}, larger, "24 tokens, the model 23", "passes[0]"),
    ]
    for options, given_tokenizer, message, place in cases:
        with pytest.raises(CookError) as caught:
            pruned(model, given_tokenizer, **options)
        assert message in caught.value.message
        assert place in (caught.value.where or "")
    twice = {"version": 1, "passes": ["prune.vocabulary", "prune.vocabulary"]}
    with pytest.raises(CookError, match="a second time") as caught:
        cook.apply(model, twice, tokenizer=tokenizer)
    assert "passes[1]" in (caught.value.where or "")
    assert model.get_input_embeddings().num_embeddings == 23


def test_calibration_examples_get_the_new_numbers_when_the_rows_have_left(tmp_path):
    (tmp_path / "words.txt").write_text("good plot", encoding="utf-8")
    config = {"version": 1, "passes": [{"prune.vocabulary": {"corpora": [str(tmp_path / "words.txt")]}}]}
    good, plot, film = (5 + tiny.WORDS.index(word) for word in ("good", "plot", "film"))
    batch = {"input_ids": torch.tensor([[2, good, plot, film, 3]]), "labels": torch.tensor([1])}
    options = {"total_steps": 0, "tokenizer": tiny.tokenizer(), "calibration": [batch]}
    with cook.attach(tiny.model(), config, **options) as session:
        [before] = session.examples(1)
        assert before["input_ids"].tolist() == batch["input_ids"].tolist()
        session.finish()
        [after] = session.examples(1)
    assert after["input_ids"].tolist() == [[2, 5, 6, 1, 3]]
    assert after["labels"].tolist() == [1]
    assert session.tokenizer.convert_ids_to_tokens([5, 6]) == ["good", "plot"]
