"""Texts are read alike whatever is beside them: padding, segments, special tokens, cut rows, tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
import yaml
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import cook
from cook.data.tasks import text
from cook.errors import CookError
from cook.model.tokens.tokenizer import Lexicon
from cook.pipeline import evaluate, tokenizer_check
from cook.pipeline.plan import plan
from cook.recipe import load_recipe
from cook.teacher.teacher import folded
from tests.helpers import families, tiny, tokenizers
from tests.helpers.sections import bound, own_cache, rows

__all__ = ["own_cache"]

SHORT, LONG = "good film", "the story is very good and not a bad film was the plot"
ABSOLUTE = ("bert", "distilbert", "roberta", "electra", "gpt2", "llama", "mistral", "opt", "gpt_neox")
LEFT = {"xlnet": T.XLNetConfig(vocab_size=23, d_model=16, n_layer=1, n_head=4, d_inner=16, **tiny.LABELS)}


@pytest.mark.parametrize("family", [*ABSOLUTE, *LEFT])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_gets_the_same_logits_alone_and_beside_a_longer_one(family, side):
    torch.manual_seed(0)
    if family in LEFT and side == "right":
        pytest.skip("its head reads the last column")
    made = T.AutoModelForSequenceClassification
    model = (made.from_config(LEFT[family]) if family in LEFT else families.made(family)).eval()
    model.config.pad_token_id = 0
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = side
    dataset = rows(text=[SHORT, LONG], label=[0, 1])
    model.config.id2label, model.config.label2id = {0: "0", 1: "1"}, {"0": 0, "1": 1}
    task = bound(dataset, model.config)
    found = list(task.prepare(dataset, tokenizer))
    with torch.no_grad():
        both = model(**task.collate(found)).logits
        alone = torch.cat([model(**task.collate([row])).logits for row in found])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_segments_go_only_to_models_that_tell_them_apart():
    dataset = rows(a=[SHORT], b=[LONG], label=[0])
    tokenizer = tiny.tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    said: list[str] = []

    def columns(config: Any) -> list[str]:
        task = bound(dataset, config, text=["a", "b"], say=said.append)
        return task.prepare(dataset, tokenizer).column_names

    sizes = {"vocab_size": 23, "pad_token_id": 0, **tiny.LABELS}
    assert "token_type_ids" in columns(T.BertConfig(**sizes))
    assert not [line for line in said if "segments" in line]
    for config in (T.RobertaConfig(**sizes, type_vocab_size=1), T.DistilBertConfig(**sizes)):
        assert "token_type_ids" not in columns(config)
        assert "tells no segments apart" in said[-1]
    tokenizer.backend_tokenizer.post_processor = T.BertTokenizerFast and _three_segments()
    with pytest.raises(CookError, match=r"gives the segment 2, the model knows 2: 0 to 1"):
        columns(T.BertConfig(**sizes))


def _three_segments() -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:2 [SEP]:2", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_special_tokens_in_a_text_are_text(kind):
    tokenizer = tokenizers.tokenizer(kind)
    plain = next(text.encode(tokenizer, [["a film"]], length=50, pad=0))["input_ids"][0].as_py()
    ends = [plain[0], plain[-1]]
    found = next(text.encode(tokenizer, [["a [SEP] film [CLS] [MASK]"]], length=50, pad=0))
    ids = found["input_ids"][0].as_py()
    assert [ids[0], ids[-1]] == ends
    specials = {tokenizer.convert_tokens_to_ids(each) for each in ("[SEP]", "[CLS]", "[MASK]", "[PAD]")}
    assert len(ids) > len(plain)
    assert not set(ids[1:-1]) & specials
    (counted,) = Lexicon(tokenizer).encode(["a [SEP] film [CLS] [MASK]"], template=True)
    assert counted.tolist() == ids, "pruning the vocabulary counts the same tokens"
    assert tokenizer("[SEP]")["input_ids"] == [ends[0], ends[1], ends[1]], "it is left as it was"


LETTERS = st.text(st.characters(codec="utf-8", exclude_characters="[]<>\x00"), max_size=40)


@settings(max_examples=60, deadline=None)
@drawn(LETTERS, st.sampled_from(tokenizers.KINDS))
def test_texts_without_special_tokens_are_read_as_ever(words, kind):
    tokenizer = tokenizers.tokenizer(kind)
    found = next(text.encode(tokenizer, [[words]], length=200, pad=0))["input_ids"][0].as_py()
    assert found == tokenizer(words, truncation=True, max_length=200)["input_ids"]


def test_rows_with_special_tokens_in_them_are_counted():
    said: list[str] = []
    dataset = rows(text=["good [SEP] film", "bad film", "[CLS]"], label=[0, 1, 1])
    bound(dataset, say=said.append).prepare(dataset, tiny.tokenizer())
    assert any("2 of 3 rows have special tokens such as '[SEP]'" in line for line in said)


def test_cut_rows_are_counted_fresh_and_cached(own_cache):
    dataset = rows(text=[LONG, SHORT, LONG, " ".join(tiny.WORDS)], label=[0, 1, 1, 0])
    for _ in range(2):
        task = bound(dataset, max_length=15)
        found = task.prepare(dataset, tiny.tokenizer())
        assert found["cut"][:] == [False, False, False, True]
        assert task.cut(found) == 1
    pairs = rows(a=[LONG, SHORT], b=[LONG, SHORT], label=[0, 1])
    task = bound(pairs, text=["a", "b"], max_length=14)
    assert task.prepare(pairs, tiny.tokenizer())["cut"][:] == [True, False]


def test_many_unknown_tokens_are_said():
    said: list[str] = []
    dataset = rows(text=["ein guter film", SHORT], label=[0, 1])
    bound(dataset, say=said.append).prepare(dataset, tiny.tokenizer())
    assert any(line.startswith("22% of the tokens of 2 rows are unknown") for line in said)
    said.clear()
    dataset = rows(text=[LONG, SHORT], label=[0, 1])
    bound(dataset, say=said.append).prepare(dataset, tiny.tokenizer())
    assert not said


def recipe(folder: Path, **model: Any) -> Path:
    for split in ("train", "validation"):
        tiny.table(folder / f"{split}.tsv", 16)
    value = {
        "version": 1,
        "model": {"path": "bert", "task": "text-classification", **model},
        "data": {"train": "train.tsv", "validation": "validation.tsv", "text": "sentence", "max_length": 6},
        "train": {"steps": 1, "batch_size": 8},
        "eval": {"latency": False},
        "output": {"path": "out"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(value))
    return folder / "recipe.yaml"


def test_a_run_reports_what_it_cut(tmp_path, own_cache):
    tiny.folder(tmp_path / "bert")
    said: list[str] = []
    report = cook.run(recipe(tmp_path), say=said.append, progress=False)
    lengths = [len(line.split("\t")[0].split()) + 2 for line in (tmp_path / "train.tsv").open()][1:]
    cut = sum(length > 6 for length in lengths)
    assert report.data["truncated"] == {"train": cut, "validation": cut}
    assert any(f"train: {cut} of 16 rows are longer than 6 tokens and were cut" in line for line in said)


def test_another_models_tokenizer_is_refused(tmp_path, own_cache):
    tiny.folder(tmp_path / "bert")
    other = tiny.tokenizer()
    other.save_pretrained(tmp_path / "same")
    backend = tiny.tokenizer().backend_tokenizer
    from tokenizers import normalizers

    backend.normalizer = normalizers.Replace("good", "bad")  # the same vocabulary, another reading
    lower = T.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    lower.save_pretrained(tmp_path / "other")
    with pytest.raises(CookError, match=r"model\.tokenizer: .*is not the tokenizer of the model.* becomes"):
        cook.run(recipe(tmp_path, tokenizer="other"), say=lambda line: None, progress=False)
    with pytest.raises(CookError, match=r"model\.tokenizer: .*is not the tokenizer of the model.* becomes"):
        plan(load_recipe(recipe(tmp_path, tokenizer="other")))
    plan(load_recipe(recipe(tmp_path, tokenizer="same")))
    named = [f"model.tokenizer={tmp_path / 'other'}"]
    with pytest.raises(CookError, match=r"model\.tokenizer=.*is not the tokenizer of the model.* becomes"):
        evaluate(tmp_path / "bert", recipe(tmp_path), named)
    evaluate(tmp_path / "bert", recipe(tmp_path), [f"model.tokenizer={tmp_path / 'same'}"])
    cook.run(recipe(tmp_path, tokenizer="same"), say=lambda line: None, progress=False)


def test_a_tokenizer_that_does_not_fit_a_model_in_memory_is_a_warning():
    rows = {"sentence": ["good film", "bad plot"], "label": [1, 0]}
    model = tiny.model()
    model.config.pad_token_id = 1
    config = {"version": 1, "train": {"steps": 1, "batch_size": 2}}
    with pytest.warns(UserWarning, match="pad_token_id is 0 in the tokenizer and 1 in the model's config"):
        cook.apply(model, config, data={"train": rows}, tokenizer=tiny.tokenizer())


def test_ids_that_model_and_tokenizer_give_special_tokens_are_compared():
    tokenizer = tiny.tokenizer()
    assert tokenizer_check.notes(tokenizer, tiny.model().config) == []
    config = T.BertConfig(vocab_size=30522, pad_token_id=1, cls_token_id=101)
    found = tokenizer_check.notes(tokenizer, config)
    assert any("pad_token_id is 0 in the tokenizer and 1" in line for line in found)
    assert any("the tokenizer has 23 tokens, the model 30,522" in line for line in found)


def test_a_teacher_reads_only_the_segments_that_it_knows():
    student = tiny.model().eval()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    config = T.RobertaConfig(**sizes, vocab_size=23, pad_token_id=0, type_vocab_size=1, **tiny.LABELS)
    teacher = T.RobertaForSequenceClassification(config)
    batch = {**tiny.batch(), "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 4)}
    steps = {"version": 1, "passes": ["distill.logits"]}
    with cook.attach(student, steps, total_steps=2, teacher=teacher) as session:
        session.before_step(0)
        session.module(batch)
    assert tokenizer_check.needs_segments(tiny.model(), teacher)
    assert not tokenizer_check.needs_segments(teacher, tiny.model())


@pytest.mark.parametrize(
    "names", [["positive", "negative"], ["POSITIVE", "NEGATIVE"], [" Positive", "Negative"]]
)
def test_the_labels_of_a_teacher_in_another_order_are_refused(names):
    teacher = tiny.model(seed=1)
    teacher.config.id2label = dict(enumerate(names))
    teacher.config.label2id = {name: number for number, name in enumerate(names)}
    steps = {"version": 1, "passes": ["distill.logits"]}
    with pytest.raises(CookError, match="both need the same labels in the same order"):
        cook.attach(tiny.model(), steps, total_steps=2, teacher=teacher)
    teacher.config.label2id = {name: 1 - number for number, name in enumerate(names)}
    cook.attach(tiny.model(), steps, total_steps=2, teacher=teacher).close()
    assert folded({"A": 0, "a": 1}) == {"A": 0, "a": 1}, "names that differ in case alone stay apart"
