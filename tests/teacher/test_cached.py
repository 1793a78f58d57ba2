"""Cached teachers say what living ones say, and files of anything else are not believed."""

from __future__ import annotations

import copy
import hashlib
import resource
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from cook.data import batches, tasks
from cook.data.rows import sources
from cook.data.tasks import Task, text
from cook.distill.losses.truncated import top
from cook.errors import CookError, RunError
from cook.model.nn.hooks import Hooks
from cook.teacher.cached import CachedTeacher, fill
from cook.teacher.teacher import Teacher
from tests.helpers import tiny
from tests.helpers.sections import error, own_cache, section

__all__ = ["own_cache"]

INSIDE = ("embeddings.output", "layers[0].output", "layers[1].attention.scores", "layers[1].attention.values")
SIZE = 6


@dataclass
class Case:
    """A task with its rows, and what it said."""

    task: Task
    rows: Dataset
    said: list[str] = field(default_factory=list)


def case(folder: Path, family: str = "bert", *, side: str = "right", seed: int = 0, rows: int = 20) -> Case:
    """Sentences of different lengths, or images, for a tiny model of the family."""
    said: list[str] = []
    if family == "vit":
        pixels = np.random.RandomState(seed).randint(0, 256, (rows, 8, 8)).astype(np.uint8)
        table = Dataset.from_dict(
            {"image": list(pixels), "label": [("negative", "positive")[row % 2] for row in range(rows)]}
        )
        task = tasks.find("image-classification")(section(image="image"), error, said.append)
        task.bind(tiny.model(family).config, task.labels({"train": table}))
        return Case(task, task.prepare(table, task.plain_processor()), said)
    given = section(train=tiny.table(folder / f"{family}{seed}.tsv", rows, seed=seed))
    table = sources.load(given, error, splits=["train"])["train"]
    task = tasks.find("text-classification")(given, error, said.append)
    task.bind(tiny.model(family).config, task.labels({"train": table}))
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = side
    return Case(task, task.prepare(table, tokenizer), said)


def filled(case: Case, model: torch.nn.Module, *names: str, size: int = SIZE, **options) -> CachedTeacher:
    """A cached teacher that has run over the case; the model itself is left as it is."""
    teacher = CachedTeacher(copy.deepcopy(model), Hooks(), **options)
    for name in names:
        teacher.watch(name)
    teacher.open()
    teacher.fill(case.task, case.rows, Accelerator(cpu=True), batch_size=size)
    return teacher


def living(model: torch.nn.Module, *names: str) -> Teacher:
    teacher = Teacher(copy.deepcopy(model), Hooks())
    for name in names:
        teacher.watch(name)
    teacher.open()
    return teacher


def some(case: Case, *, seed: int = 3, size: int = 4):
    """The batches of an epoch, with the numbers of their rows."""
    updates = batches.plan_epoch(batches.lengths(case.rows), len(case.rows), size, seed, 0)
    for [(batch, _)] in batches.epoch_loader(case.rows, case.task, updates, numbered=True):
        yield batch


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.answers"))


@pytest.mark.parametrize(
    ("family", "side"),
    [("bert", "right"), ("gpt2", "right"), ("llama", "right"), ("llama", "left"), ("vit", "right")],
)
def test_a_cached_teacher_says_what_a_living_one_says(tmp_path, family, side):
    given, model = case(tmp_path, family, side=side), tiny.model(family, seed=1)
    cached, live = filled(given, model, *INSIDE), living(model, *INSIDE)
    assert {parameter.device.type for parameter in cached.model.parameters()} == {"meta"}
    close = {"atol": 1e-6, "rtol": 1e-5}
    for batch in some(given):
        cached.set_batch(batch)
        live.set_batch(batch)
        torch.testing.assert_close(cached.outputs.logits, live.outputs.logits, **close)
        valid = batch.get("attention_mask", torch.ones(len(batch["labels"]), 5)).bool()
        for name in INSIDE:
            found, expected = cached.tensor(name), live.tensor(name)
            mask = {
                "scores": valid[:, None, :, None] & valid[:, None, None, :],
                "values": valid[:, None, :, None],
            }.get(name.rpartition(".")[2], valid[:, :, None])
            torch.testing.assert_close(found, expected * mask, **close)
        assert cached.finite


def test_positions_that_move_with_a_padding_on_the_left_are_refused(tmp_path):
    given = case(tmp_path, "gpt2", side="left")
    given.task._side = "left"  # as a task of a package of one's own may pad
    with pytest.raises(CookError, match=r"depends on its padding(.|\n)*padding_side is right"):
        filled(given, tiny.model("gpt2", seed=1))
    assert not files(tmp_path / "cache")


def test_what_is_not_said_by_example_is_refused(tmp_path):
    """Position embeddings are looked up once for all examples."""
    positions = "bert.embeddings.position_embeddings[out]"
    with pytest.raises(CookError, match=r"position_embeddings\[out\] is one for all examples"):
        filled(case(tmp_path), tiny.model(seed=1), positions)
    assert not files(tmp_path / "cache")


def test_each_thing_that_is_asked_has_its_own_entry_and_is_found_again(tmp_path, own_cache):
    given, model = case(tmp_path), tiny.model(seed=1)
    filled(given, model)
    [first] = files(own_cache)
    assert "over 20 rows, once; 0.0 MB are kept" in given.said[-2]
    told, inode = list(given.said), first.stat().st_ino
    filled(given, model)
    filled(given, model, "logits", top=5)
    assert [path.stat().st_ino for path in files(own_cache)] == [inode]
    assert given.said == [*told, *[f"the teacher's answers are read from {own_cache}"] * 2]
    filled(given, model, "layers[0].output")
    filled(given, tiny.model(seed=2))
    filled(given, model, dtype="float16")
    filled(given, model, size=SIZE + 1)
    changed = copy.deepcopy(model)
    changed.config.hidden_act = "relu"
    filled(given, changed)
    assert len(files(own_cache)) == 6
    assert not any("other data" in line for line in given.said)
    other = case(tmp_path, seed=1)
    filled(other, model)
    assert len(files(own_cache)) == 7
    assert "of this teacher are about other data" in other.said[-3]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "no answers"])
def test_a_file_that_is_not_what_its_name_says_is_made_again(tmp_path, own_cache, damage):
    given, model = case(tmp_path), tiny.model(seed=1)
    filled(given, model)
    [path] = files(own_cache)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-5] ^= 1
    if damage in ("foreign", "no answers"):
        path.unlink()
        filled(given, tiny.model(seed=2))
        [other] = files(own_cache)
        if damage == "no answers":
            other.write_bytes(b"\xff" * 100)
            other = other.rename(other.with_stem(f"{other.stem[:40]}-{digest(other)}"))
        other.rename(other.with_stem(path.stem[:40] + other.stem[40:]))
    else:
        path.write_bytes({"truncated": content[:-9], "flipped": bytes(flipped), "empty": b""}[damage])
    filled(given, model)
    assert any("runs over the data again" in line for line in given.said)
    assert files(own_cache) == [path]
    assert path.read_bytes() == content, "what is lost is made again as it was"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_a_row_that_is_not_finite_is_named(tmp_path, own_cache):
    given, model = case(tmp_path), tiny.model(seed=1)
    word = 5 + tiny.WORDS.index("cast")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[word] = torch.nan
    with_word = [row for row, ids in enumerate(given.rows["input_ids"][:]) if word in ids]
    longest = max(with_word, key=lambda row: (given.rows["length"][row], -row))
    with pytest.raises(RunError, match=rf"the teacher's [\w\[\].]+ are not finite for row {longest} "):
        filled(given, model, "layers[0].output")
    assert list(own_cache.glob("*.tmp")) == files(own_cache) == []


def test_a_disk_without_room_is_told(tmp_path, own_cache):
    given, model = case(tmp_path), tiny.model(seed=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RunError, match=r"the cache cannot be written(.|\n)*set COOK_CACHE"):
            filled(given, model, *INSIDE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(own_cache.glob("*.tmp")) == files(own_cache) == []


def test_a_disk_that_is_too_small_is_told_before_the_teacher_runs(tmp_path, own_cache, monkeypatch):
    monkeypatch.setattr("cook.teacher.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(
        "cook.teacher.cache_builder.CacheBuilder.blocks",
        lambda *_, **__: (pytest.fail("it runs") for _ in range(1)),
    )
    with pytest.raises(RunError, match=r"GB are needed, 0\.000 GB are free(.|\n)*set COOK_CACHE"):
        filled(case(tmp_path), tiny.model(seed=1), *INSIDE)
    assert list(own_cache.glob("*.tmp")) == files(own_cache) == []


def test_half_precision_is_kept_as_it_is_or_as_asked(tmp_path):
    given, model = case(tmp_path), tiny.model(seed=1)
    half = copy.deepcopy(model).to(torch.bfloat16)
    cached, live = filled(given, half, "layers[0].output"), living(half, "layers[0].output")
    smaller, whole = (
        filled(given, model, "layers[0].output", dtype="bfloat16"),
        living(model, "layers[0].output"),
    )
    for batch in some(given):
        valid = batch["attention_mask"][:, :, None]
        for one, other, dtype in ((cached, live, torch.bfloat16), (smaller, whole, torch.float32)):
            one.set_batch(batch)
            other.set_batch(batch)
            assert one.outputs.logits.dtype == one.tensor("layers[0].output").dtype == torch.bfloat16
            assert other.outputs.logits.dtype == dtype
            torch.testing.assert_close(
                one.tensor("layers[0].output").float(),
                (other.tensor("layers[0].output") * valid).float(),
                atol=0.03,
                rtol=0.02,
            )


class Words(tasks.TASKS["text-classification"]):
    """Rows of tokens that are their own labels."""

    def collate(self, rows):
        ids = text.pad([row["input_ids"] for row in rows], 0, "right")
        return {
            "input_ids": ids,
            "attention_mask": text.attention([r["length"] for r in rows], "right"),
            "labels": ids,
        }


def test_of_a_large_vocabulary_the_top_is_kept(tmp_path):
    ids = [[1, 5, 7], [2, 3], [4, 9, 11, 6, 8]]
    rows = Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]})
    given = Case(Words(section(), error), rows)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=12)).eval()
    live = living(model)

    def asked(*temperatures, watch=(), k=3):
        teacher = CachedTeacher(copy.deepcopy(model), Hooks(), top=k)
        for name in watch:
            teacher.watch(name)
        for temperature in temperatures:
            teacher.soften(temperature)
        teacher.open()
        teacher.fill(given.task, rows, Accelerator(cpu=True), batch_size=2)
        return teacher

    cut, whole, small = asked(1, 2.5), asked(1, watch=["logits"]), asked(1, k=6)
    for batch in some(given, size=2):
        valid = batch["attention_mask"].bool()
        for each in (cut, whole, small, live):
            each.set_batch(batch)
        for each in (whole, small):
            assert each.top(1) is None
            torch.testing.assert_close(each.outputs.logits[valid], live.outputs.logits[valid])
        assert "logits" not in cut.outputs
        for temperature in (1, 2.5):
            expected = top(live.outputs.logits, 3, temperature)
            for found, wanted in zip(cut.top(temperature), expected, strict=True):
                assert found.dtype == wanted.dtype
                torch.testing.assert_close(found[valid], wanted[valid])


def test_batches_must_say_which_rows_they_hold(tmp_path):
    given = case(tmp_path)
    teacher = filled(given, tiny.model())
    teacher.set_batch(tiny.batch())
    with pytest.raises(CookError, match="says which rows it holds"):
        _ = teacher.outputs


def test_nobody_who_is_not_asked_runs(tmp_path, own_cache):
    given, model = case(tmp_path), tiny.model(seed=1)
    idle, busy = (CachedTeacher(copy.deepcopy(model), Hooks()) for _ in range(2))
    busy.soften(2.0)
    fill([idle, busy], given.task, given.rows, Accelerator(cpu=True), batch_size=SIZE)
    assert {parameter.device.type for parameter in idle.model.parameters()} == {"cpu"}
    assert {parameter.device.type for parameter in busy.model.parameters()} == {"meta"}
    assert len(files(own_cache)) == 1
