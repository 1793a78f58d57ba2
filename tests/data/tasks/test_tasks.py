"""Tasks on text: columns, lengths, padding, labels, scores, and what data that does not fit gets."""

from __future__ import annotations

import datasets
import pytest
import torch
from sklearn.metrics import f1_score
from tokenizers import processors
from transformers import BertConfig, GPT2Config, XLNetConfig

from cook.data import tasks
from cook.data.tasks import text
from cook.data.tasks.classification import scores
from cook.data.tasks.labels import as_name, ids, names_of
from cook.errors import CookError
from tests.helpers import tiny
from tests.helpers.sections import TEXTS, bound, error, own_cache, rows, section

__all__ = ["own_cache"]


def failure(dataset, config=None, **given) -> CookError:
    with pytest.raises(CookError) as caught:
        bound(dataset, config, **given).prepare(dataset, tiny.tokenizer())
    return caught.value


def test_tasks_are_found_by_name():
    assert tasks.find("text-classification").metric == "accuracy"
    with pytest.raises(CookError, match="did you mean 'text-classification'"):
        tasks.find("text-clasification")


def test_prepared_rows_are_the_tokenizer_s():
    dataset, tokenizer = rows(), tiny.tokenizer()
    found = bound(dataset).prepare(dataset, tokenizer)
    plain = tokenizer(TEXTS, truncation=True, max_length=32)
    assert found["input_ids"][:] == plain["input_ids"]
    assert found["labels"][:] == [1, 0, 0, 1]
    assert found["length"][:] == [len(row) for row in plain["input_ids"]]
    named = {"input_ids", "labels", "length", "cut"}
    assert set(found.column_names) == {*named, *(set(plain) & {"token_type_ids"})}
    assert found["cut"][:] == [False] * len(TEXTS)


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_as_the_tokenizer_pads(side):
    dataset, tokenizer = rows(a=TEXTS, b=TEXTS[::-1], label=[1, 0, 0, 1]), tiny.tokenizer()
    tokenizer.padding_side = side
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    # BERT counts positions from the first column of a batch; XLNet has none that a padding could move.
    config = XLNetConfig(vocab_size=23, pad_token_id=0, **tiny.LABELS) if side == "left" else None
    task = bound(dataset, config, text=["a", "b"])
    batch = task.collate(list(task.prepare(dataset, tokenizer)))
    expected = tokenizer(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
    assert set(batch) == {*expected, "labels"}
    assert batch["token_type_ids"].any()
    for name, tensor in expected.items():
        assert batch[name].equal(tensor), name
    assert batch["labels"].tolist() == [1, 0, 0, 1]
    assert task.count(batch) == 4


def test_the_tokenizer_is_left_as_it_was():
    tokenizer = tiny.tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    bound(rows(), max_length=4).prepare(rows(), tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_text_is_cut_to_the_limit():
    dataset = rows(sentence=["good " * 600], label=[1])
    assert bound(dataset).prepare(dataset, tiny.tokenizer())["length"][:] == [32]
    assert bound(dataset, max_length=5).prepare(dataset, tiny.tokenizer())["length"][:] == [5]
    assert failure(dataset, max_length=33).where == "data.max_length"
    endless = tiny.tokenizer()
    endless.model_max_length = int(1e30)
    config = BertConfig(vocab_size=23, max_position_embeddings=4096, **tiny.LABELS)
    assert bound(dataset, config).prepare(dataset, endless)["length"][:] == [512]


def test_the_text_column_is_found_or_asked_for():
    assert text.columns(rows(idx=[1], label=["x"], line=["a"]), section(), error) == ["line"]
    problem = failure(rows(a=["x"], b=["y"], label=[1]))
    assert problem.where == "data.text"
    assert "several columns hold text (a, b); the columns are a, b, label" in problem.message
    assert "no column holds text" in failure(rows(a=[1], label=[1])).message
    assert "no column 'c'" in failure(rows(a=["x"], label=[1]), text="c").message
    assert "not text" in failure(rows(a=["x"], n=[1], label=[1]), text=["a", "n"]).message
    assert "the first is row 1" in failure(rows(a=["x", None], label=[1, 0])).message


def test_a_decoder_without_padding_token_gets_its_end_of_text():
    tokenizer, config, said = tiny.tokenizer(), GPT2Config(vocab_size=23, **tiny.LABELS), []
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    config.pad_token_id = None
    task = bound(rows(), config, say=said.append)
    batch = task.collate(list(task.prepare(rows(), tokenizer)))
    assert (config.pad_token_id, tokenizer.pad_token) == (3, "[SEP]")
    assert batch["input_ids"][2].tolist()[-1] == 3
    assert len(said) == 1
    assert "'[SEP]'" in said[0]
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(CookError, match="no padding token"):
        task.prepare(rows(), tokenizer)


def test_a_text_without_tokens_is_one_padding_token():
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    dataset = rows(sentence=["", "good"], label=[0, 1])
    task = bound(dataset)
    assert task.prepare(dataset, tokenizer)["input_ids"][:] == [[0], [5]]


def test_a_tokenizer_of_another_model_is_noticed():
    problem = failure(rows(), BertConfig(vocab_size=20, max_position_embeddings=32, **tiny.LABELS))
    assert problem.where == "model.tokenizer"
    assert "the model knows 20" in problem.message
    with pytest.raises(CookError, match="without a tokenizer"):
        bound(rows()).prepare(rows(), None)


def test_label_names_come_in_order():
    task = tasks.find("text-classification")(section(), error)
    class_label = datasets.ClassLabel(names=["z", "a"])
    named = rows(t=["x"], label=[0]).cast_column("label", class_label)
    assert task.labels({"train": named}) == ["z", "a"]
    assert task.labels({"train": rows(label=["b", "a"]), "validation": rows(label=["c"])}) == ["a", "b", "c"]
    assert task.labels({"train": rows(label=[10, 9, 2])}) == ["2", "9", "10"]
    assert task.labels({"train": rows(label=["10", "9"]), "validation": rows(label=[11])}) == [
        "9",
        "10",
        "11",
    ]
    assert [as_name(value) for value in (True, 1.0, 1, "1", "yes")] == ["1", "1", "1", "1", "yes"]


@pytest.mark.parametrize(
    ("labels", "model", "expected"),
    [
        (["negative", "positive"], {"negative": 1, "positive": 0}, {"negative": 1, "positive": 0}),
        (["negative", "positive"], {"NEGATIVE": 0, "POSITIVE": 1}, {"negative": 0, "positive": 1}),
        (["0", "1"], {"negative": 0, "positive": 1}, {"0": 0, "1": 1}),
        (["0", "1"], {"LABEL_0": 0, "LABEL_1": 1}, {"0": 0, "1": 1}),
        (["1", "2"], {"1": 0, "2": 1}, {"1": 0, "2": 1}),
        (["LABEL_1"], {"LABEL_0": 0, "LABEL_1": 1}, {"LABEL_1": 1}),
        (["b"], {"a": 0, "b": 1, "c": 2}, {"b": 1}),
    ],
)
def test_labels_get_the_model_s_numbers(labels, model, expected):
    assert ids(labels, model, error) == expected


@pytest.mark.parametrize(
    ("labels", "model", "message"),
    [
        (["no", "yes"], {"LABEL_0": 0, "LABEL_1": 1}, "'no', 'yes'"),
        (["1", "2"], {"LABEL_0": 0, "LABEL_1": 1}, "does not: '2'"),
        (["-1", "0", "1"], {"LABEL_0": 0, "LABEL_1": 1}, "name a split that has labels"),
        (["a", "x"], {"a": 0, "A": 1}, "does not: 'x'; the data's are 'a', 'x', the model's are 'a', 'A'"),
    ],
)
def test_labels_that_the_model_lacks_are_listed_with_its_own(labels, model, message):
    with pytest.raises(CookError) as caught:
        ids(labels, model, error)
    assert caught.value.where == "data.label"
    assert message in str(caught.value)


def test_default_names_take_the_numbers_of_a_class_label():
    dataset = rows(t=["good", "bad"], label=[0, 1])
    dataset = dataset.cast_column("label", datasets.ClassLabel(names=["n", "p"]))
    config = BertConfig(vocab_size=23, max_position_embeddings=32, num_labels=2)
    assert bound(dataset, config).prepare(dataset, tiny.tokenizer())["labels"][:] == [0, 1]
    flipped = BertConfig(
        vocab_size=23, max_position_embeddings=32, label2id={"p": 0, "n": 1}, id2label={0: "p", 1: "n"}
    )
    assert bound(dataset, flipped).prepare(dataset, tiny.tokenizer())["labels"][:] == [1, 0]


def test_a_new_head_gets_the_data_s_labels():
    config = BertConfig(vocab_size=23, max_position_embeddings=32)
    dataset = rows(t=["a", "b", "c"], label=["x", "z", "y"])
    task = bound(dataset, config, building=True)
    assert (config.num_labels, config.id2label) == (3, {0: "x", 1: "y", 2: "z"})
    assert task.prepare(dataset, tiny.tokenizer())["labels"][:] == [0, 2, 1]
    with pytest.raises(CookError, match="single label"):
        bound(rows(t=["a"], label=["x"]), config, building=True)


def test_labels_of_the_recipe_name_the_numbers_of_the_data():
    numbered, config = rows(), BertConfig(vocab_size=23, max_position_embeddings=32)
    task = tasks.find("text-classification")(section(), error)
    task.bind(config, ["bad", "good"], building=True)
    assert task.prepare(numbered, tiny.tokenizer())["labels"][:] == [1, 0, 0, 1]
    unlabelled = rows(t=["a", "b"], label=[0, -1]).cast_column(
        "label", datasets.ClassLabel(names=["bad", "good"])
    )
    with pytest.raises(CookError, match="name a split that has labels"):
        task.prepare(unlabelled, tiny.tokenizer())


def test_labels_that_are_none_are_refused():
    assert "no column 'label'" in failure(rows(t=["a"])).message
    assert "without a label" in failure(rows(t=["a", "b"], label=[1, None])).message
    assert "real numbers" in failure(rows(t=["a"], label=[0.5])).message
    assert "names or integers" in failure(rows(t=["a"], label=[[1]])).message
    assert "regression" in failure(rows(), BertConfig(num_labels=1)).message
    assert "multi" in failure(rows(), BertConfig(problem_type="multi_label_classification")).message
    task = bound(rows())
    with pytest.raises(CookError, match="does not: 'surprise'"):
        task.prepare(rows(t=["a"], label=["surprise"]), tiny.tokenizer())


def test_scores_are_those_of_scikit_learn():
    labels, predicted = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
    assert scores(labels, predicted, 2) == {"accuracy": 0.75, "f1_binary": pytest.approx(2 / 3)}
    labels, predicted = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 2])
    assert scores(labels, predicted, 3)["f1_macro"] == f1_score(labels, predicted, average="macro")
    assert scores(torch.tensor([0]), torch.tensor([0]), 2) == {"accuracy": 1.0, "f1_binary": 0.0}


def test_a_head_with_too_few_classes_is_told_how_to_be_replaced():
    found = failure(rows(label=["a", "b", "c", "d"]), BertConfig(num_labels=2))
    assert "a head of 2 classes cannot tell 4 apart" in str(found)


def test_labels_are_read_without_a_bar(capsys):
    dataset = rows().select([0, 2])  # chosen rows, which `datasets` gathers before it looks for values
    bound(dataset)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ({"id2label": {0: "a", 1: "b"}}, ["a", "b"]),
        ({"id2label": {1: "b", 0: "a"}, "label2id": {"b": 1, "a": 0}}, ["a", "b"]),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ["a", "b"]),
        ({"id2label": {0: "Neg", 1: "Pos"}, "label2id": {"neg": 0, "pos ": 1}}, ["Neg", "Pos"]),
        ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ],
)
def test_the_label_map_that_has_names_is_used(maps, expected):
    config = BertConfig(vocab_size=23, max_position_embeddings=32, **maps)
    assert names_of(config, error) == expected
    task = bound(rows(t=["x", "y"], label=[1, 0]), config)
    assert task.prepare(rows(t=["x", "y"], label=[1, 0]), tiny.tokenizer())["labels"][:] == [1, 0]
    assert config.label2id == {name: index for index, name in enumerate(expected)}


def test_a_label_map_by_name_alone_is_used():
    config = BertConfig()
    config.label2id = {"b": 1, "a": 0}
    assert names_of(config, error) == ["a", "b"]


@pytest.mark.parametrize(
    ("id2label", "label2id", "message"),
    [
        ({0: "a", 1: "b"}, {"a": 1, "b": 0}, "contradict"),
        ({0: "a", 1: "b"}, {"a": 0}, "contradict"),
        ({0: "a", 1: "b"}, {"a": 0, "b": 1, "c": 2}, "contradict"),
        ({0: "a", 2: "b"}, {"a": 0, "b": 2}, "does not name exactly these"),
        ({0: "LABEL_0", 1: "LABEL_1"}, {"a": 0, "b": 1, "c": 2}, "does not name exactly these"),
        ({0: "a", 1: "a"}, {"a": 1}, "same name"),
    ],
)
def test_label_maps_that_contradict_each_other_are_refused(id2label, label2id, message):
    config = BertConfig(vocab_size=23, max_position_embeddings=32)
    config.id2label, config.label2id = id2label, label2id
    problem = failure(rows(t=["x"], label=[0]), config)
    assert problem.where == "model.path"
    assert message in problem.message
    assert str(id2label) in problem.message
    assert str(label2id) in problem.message


def test_labels_that_differ_by_whitespace_are_one_class():
    dataset = rows(t=["x", "y", "z"], label=["pos", " pos ", "neg\u00a0"])
    task = tasks.find("text-classification")(section(), error)
    assert task.labels({"train": dataset}) == ["neg", "pos"]
    config = BertConfig(vocab_size=23, max_position_embeddings=32)
    task.bind(config, ["neg", "pos"], building=True)
    assert task.prepare(dataset, tiny.tokenizer())["labels"][:] == [1, 1, 0]
    declared = datasets.ClassLabel(names=["neg ", "pos"])
    assert task.labels({"train": rows(label=[0, 1]).cast_column("label", declared)}) == ["neg", "pos"]


@pytest.mark.parametrize("value", ["", " \t", "\u200b", None, float("nan")])
def test_a_label_that_is_empty_is_refused(value):
    labels = [1.0, value] if isinstance(value, float) else ["a", value]
    assert "without a label" in failure(rows(t=["x", "y"], label=labels)).message
