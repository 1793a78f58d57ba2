"""Teachers in whole runs: several, cached, in half precision, and with numbers that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import cook
from cook.errors import CookError, Interrupted, RunError
from cook.model.nn.hooks import Hooks
from cook.pipeline.inputs import load_model, load_teacher, planned_teachers, read_data
from cook.recipe import Recipe, load_recipe
from cook.session import Session
from cook.teacher.teacher import Teacher
from tests.helpers import bound, pass_matrix, tiny
from tests.helpers.traces import differences

STEPS = 6
PASSES: list[Any] = [
    {"distill.logits": {"temperature": 2, "weight": 3}},
    {"distill.hidden": {"map": {"layers[0].output": "layers[1].output"}, "weight": 10}},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The cache folder of this test alone."""
    monkeypatch.setenv("COOK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, teacher: Any, *, seed: int = 1, **train: Any) -> Recipe:
    """A recipe with a tiny BERT, and with another one to learn from at `./teacher`."""
    tiny.folder(folder / "bert")
    tiny.folder(folder / "teacher", seed=seed)
    value = {
        "version": 1,
        "model": {"path": str(folder / "bert"), "task": "text-classification"},
        "teacher": teacher,
        "data": {
            "train": str(tiny.table(folder / "train.tsv", 30)),
            "validation": str(tiny.table(folder / "val.tsv", 8, seed=1)),
        },
        "train": {
            "steps": STEPS,
            "batch_size": 8,
            "learning_rate": 0.01,
            "log_every": 1,
            "device": "cpu",
            **train,
        },
        "passes": PASSES,
        "output": {"path": str(folder / "out")},
    }
    return load_recipe(value)


def other(folder: Path, **options: Any) -> dict[str, Any]:
    return {"path": str(folder / "teacher"), **options}


def told(run: pass_matrix.Run) -> list[float]:
    return [value for row in run.loop.history if "loss" in row for value in row["loss"].values()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("who", ["self", "another"])
def test_a_run_with_a_cache_is_the_run_without(tmp_path, who, precision):
    given: dict[str, Any] = {"path": "self"} if who == "self" else other(tmp_path)
    recipe = write(tmp_path, given, precision=precision, accumulate=2)
    live = pass_matrix.run(recipe, tmp_path / "live")
    cached = pass_matrix.run(load_recipe(recipe, ["teacher.cache=true"]), tmp_path / "cached")
    assert cached.loop.session.teachers[0].by_row
    close = {"rtol": 1e-3, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.05, "atol": 0.02}
    torch.testing.assert_close(torch.tensor(told(cached)), torch.tensor(told(live)), **close)
    if precision == "fp32":
        assert cached.outcome.after["metrics"] == pytest.approx(live.outcome.after["metrics"], abs=1e-3)


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_with_a_cache_is_resumed_to_the_bit(tmp_path, own_cache, lost):
    recipe = write(tmp_path, {"path": "self", "cache": True})
    whole = pass_matrix.run(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        pass_matrix.run(recipe, tmp_path / "stopped", stop=3)
    [file] = own_cache.glob("*.answers")
    if lost:
        file.unlink()
    resumed = pass_matrix.run(recipe, tmp_path / "stopped")
    assert file.exists()
    assert not list(differences(whole.model.state_dict(), resumed.model.state_dict()))
    assert told(whole) == told(resumed)


def test_several_teachers_are_loaded_with_their_weights(tmp_path):
    recipe = write(
        tmp_path, ["self", other(tmp_path, weight=3), other(tmp_path, dtype="bfloat16", cache=True)]
    )
    data = read_data(recipe, print)
    model = load_model(recipe, data, print)
    given = load_teacher(recipe, model, data, tiny.tokenizer(), print)
    with Session([], model, total_steps=2, teacher=given) as session:
        assert [each.weight for each in session.teachers] == [1, 3, 1]
        assert [each.by_row for each in session.teachers] == [False, False, True]
        assert [each.model.dtype for each in session.teachers] == [torch.float32] * 2 + [torch.bfloat16]
        first, second, _ = (each.model.state_dict() for each in session.teachers)
        assert not list(differences(first, tiny.model().state_dict()))
        assert not list(differences(second, tiny.model(seed=1).state_dict()))


def test_what_is_wrong_with_one_of_several_is_told_of_that_one(tmp_path):
    recipe = write(tmp_path, ["self", other(tmp_path)])
    swapped = tiny.model(seed=1)
    swapped.config.id2label, swapped.config.label2id = (
        {0: "positive", 1: "negative"},
        {"positive": 0, "negative": 1},
    )
    swapped.save_pretrained(tmp_path / "teacher")
    data = read_data(recipe, print)
    model = load_model(recipe, data, print)
    with pytest.raises(CookError, match=r"teacher\[1\]: the teacher's labels are"):
        load_teacher(recipe, model, data, tiny.tokenizer(), print)
    (tmp_path / "teacher" / "config.json").unlink()
    with pytest.raises(CookError, match=r"teacher\[1\]\.path"):
        planned_teachers(recipe, model, data)


def test_a_teacher_that_reads_less_than_the_student_is_refused(tmp_path):
    recipe = write(tmp_path, ["self", other(tmp_path)])
    config = tiny.model().config
    config.max_position_embeddings = 6
    type(tiny.model())(config).save_pretrained(tmp_path / "teacher")
    data = read_data(recipe, print)
    given = load_model(recipe, data, print), data, tiny.tokenizer(), print
    words = r"data.max_length: .*reads 32 tokens, .*teacher 6\n.*max_length: 6"
    with pytest.raises(CookError, match=words):
        load_teacher(recipe, *given)
    shorter = load_recipe(recipe, ["data.max_length=6"])
    data = read_data(shorter, print)
    assert load_teacher(shorter, load_model(shorter, data, print), data, tiny.tokenizer(), print)


def test_a_teacher_without_a_tokenizer_has_to_know_as_many_tokens(tmp_path):
    recipe = write(tmp_path, other(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "teacher" / name).unlink()
    data = read_data(recipe, print)
    given = load_model(recipe, data, print), data, tiny.tokenizer(), print
    assert load_teacher(recipe, *given)
    config = tiny.model().config
    config.vocab_size = 12
    type(tiny.model())(config).save_pretrained(tmp_path / "teacher")
    with pytest.raises(CookError, match=r"has no tokenizer, and its 12 token numbers cannot be .* 23"):
        load_teacher(recipe, *given)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2"])
def test_weights_that_are_none_are_refused(weight):
    with pytest.raises(CookError, match="weight must be a number above 0"):
        bound.session(tiny.model(), teacher=[("self", weight)])


def test_a_teacher_of_other_images_is_refused(tmp_path):
    resources = pass_matrix.Resources(tmp_path)
    recipe = resources.recipe(pass_matrix.Case("vit", (("distill.logits", 0),)))
    config = tiny.model("vit").config
    config.image_size = 16
    type(tiny.model("vit"))(config).save_pretrained(tmp_path / "large")
    recipe = load_recipe(recipe, [f"teacher={tmp_path / 'large'}"])
    data = read_data(recipe, print)
    with pytest.raises(CookError, match=r"teacher.*: the teacher's image_size is 16, the student's 8"):
        load_teacher(recipe, load_model(recipe, data, print), data, data.task.plain_processor(), print)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_a_teacher_that_gives_nan_is_named(tmp_path, cache, several):
    teacher = other(tmp_path, cache=cache)
    recipe = write(tmp_path, ["self", teacher] if several else teacher, accumulate=2)
    spoilt = tiny.model(seed=1)
    with torch.no_grad():
        spoilt.bert.embeddings.word_embeddings.weight[5 + tiny.WORDS.index("plot")] = torch.nan
    spoilt.save_pretrained(tmp_path / "teacher")
    recipe = load_recipe(recipe, [f"passes[1].teacher={int(several)}"])
    who = r"teacher 1 \(counted from 0\)" if several else "the teacher"
    words = r"are not finite for row \d+" if cache else rf"is NaN at step \d of {STEPS}: {who} gives numbers"
    with pytest.raises(RunError, match=words):
        pass_matrix.run(recipe, tmp_path / "run")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_teacher_in_half_precision_gives_it_under_autocast_too(family, dtype, autocast):
    names = ["layers[0].output", "layers[1].attention.scores"]
    full, half = (Teacher(tiny.model(family, seed=1).to(kind), Hooks()) for kind in (torch.float32, dtype))
    for teacher in (full, half):
        for name in names:
            teacher.watch(name)
        teacher.open()
        teacher.set_batch(tiny.batch(family))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert half.outputs.logits.dtype == dtype
    _ = full.outputs
    torch.testing.assert_close(half.outputs.logits.float(), full.outputs.logits, atol=0.02, rtol=0.05)
    for name in names:
        torch.testing.assert_close(half.tensor(name).float(), full.tensor(name), atol=0.05, rtol=0.05)


def test_a_student_learns_from_a_teacher_in_half_precision():
    session = bound.session(tiny.model(), *PASSES, steps=2, teacher=tiny.model(seed=1).to(torch.bfloat16))
    told = bound.train(session)
    assert all(
        value.dtype == torch.float32 and value.isfinite() for terms in told for value in terms.values()
    )


def examples(count: int = 24) -> Dataset:
    sentences = [f"{tiny.WORDS[row % 8]} {'film ' * (row % 5)}plot" for row in range(count)]
    return Dataset.from_dict({"sentence": sentences, "label": [row % 2 for row in range(count)]})


def test_apply_keeps_the_answers_too(own_cache):
    config = {
        "version": 1,
        "teacher": {"path": "self", "cache": True},
        "data": {"text": "sentence"},
        "train": {"steps": 3, "batch_size": 8},
        "passes": PASSES,
    }
    model = tiny.model()
    cook.apply(model, config, data={"train": examples()}, tokenizer=tiny.tokenizer())
    assert len(list(own_cache.glob("*.answers"))) == 1
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_a_loop_of_ones_own_has_no_cache():
    config = {"version": 1, "teacher": {"path": "self", "cache": True}, "passes": ["distill.logits"]}
    with pytest.raises(CookError, match="a teacher's cache is about data"):
        cook.attach(tiny.model(), config, total_steps=3)
