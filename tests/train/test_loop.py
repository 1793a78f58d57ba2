"""The loop: its updates against slow references, its seeds, what it selects, several processes."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from cook.data import batches
from cook.errors import CookError, Interrupted, RunError
from cook.pipeline import environment
from cook.train import checkpoint
from cook.train.loop import Loop
from tests.helpers.loops import BATCH, ROWS, SEVERAL, Rows, loop, model, rows
from tests.helpers.processes import torchrun

PRUNE = {"prune.weights": {"sparsity": 0.5, "start": 1, "end": 3}}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("rows")
        patch.setenv("COOK_CACHE", str(folder / "cache"))
        yield rows(folder)


def gradients(made: Loop) -> list[dict[str, Tensor]]:
    """The gradients of every step, as the optimizer finds them, once the loop has run."""
    found: list[dict[str, Tensor]] = []

    def note(*_: Any) -> None:
        found.append(present(made.session.model))

    handle = made.optimizer.register_step_pre_hook(note)
    made.run()
    handle.remove()
    return found


def present(student: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients that there are, as copies."""
    named = student.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def weights(made: Loop) -> dict[str, Tensor]:
    return dict(made.session.model.state_dict())


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def norm(found: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(each.double().square().sum()) for each in found.values()))


def losses(made: Loop) -> list[float]:
    return [entry["loss"]["task"] for entry in made.history if "loss" in entry]


def test_an_update_has_the_gradient_of_its_whole_batch(given: Rows) -> None:
    (first, second, *_) = gradients(loop(given, steps=2, clip=None, epsilon=0.01))
    student = model()
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, eps=0.01, weight_decay=0.01)
    for group, wanted in ((0, first), (1, second)):
        update = batches.plan_epoch(batches.lengths(given.rows), ROWS, BATCH, seed=0, epoch=0)[group]
        batch = given.task.collate([given.rows[index] for index in update])
        optimizer.zero_grad()
        student(**batch).loss.backward()
        assert furthest(present(student), wanted) < (1e-7 if group == 0 else 1e-3)
        optimizer.step()


@pytest.mark.parametrize("accumulate", [3, 4, 8])
def test_accumulation_changes_nothing(given: Rows, accumulate: int) -> None:
    """Micro-batches differ in size (the last update has six rows, for eight of them) and in length."""
    plain, cut = (loop(given, steps=6, epsilon=0.01, accumulate=parts) for parts in (1, accumulate))
    for one, other in zip(gradients(plain), gradients(cut), strict=True):
        assert furthest(one, other) < 1e-6
    assert furthest(weights(plain), weights(cut)) < 1e-6
    assert losses(plain) == pytest.approx(losses(cut), abs=1e-6)


def test_clipping_bounds_the_norm_and_reports_it_unclipped(given: Rows) -> None:
    free, clipped = loop(given, steps=1, clip=None), loop(given, steps=1, clip=0.01)
    (was,), (now,) = gradients(free), gradients(clipped)
    assert norm(was) > 0.02
    assert norm(now) == pytest.approx(0.01, rel=1e-4)
    assert clipped.history[0]["loss"]["gradient norm"] == pytest.approx(norm(was), rel=1e-5)
    assert "gradient norm" not in free.history[0]["loss"]


def test_bf16_computes_in_bf16_on_float32_weights(given: Rows) -> None:
    exact, rounded = loop(given, steps=3), loop(given, steps=3, precision="bf16")
    exact.run()
    rounded.run()
    assert {parameter.dtype for parameter in rounded.session.model.parameters()} == {torch.float32}
    assert losses(rounded) == pytest.approx(losses(exact), abs=0.02)
    assert losses(rounded) != losses(exact)
    assert "forward" not in vars(rounded.session.model)


def test_seeds(given: Rows) -> None:
    def ended(**seeds: Any) -> dict[str, Tensor]:
        made = loop(given, student=model(dropout=0.2), steps=5, accumulate=2, **seeds)
        made.run()
        return weights(made)

    first = ended()
    torch.manual_seed(5)  # nothing outside of the loop counts
    assert furthest(first, ended()) == 0
    assert furthest(first, ended(workers=2)) == 0
    assert furthest(first, ended(seed=1, data_seed=0)) > 1e-4, "dropout"
    assert furthest(first, ended(data_seed=1)) > 1e-4, "order"
    assert furthest(ended(seed=1), ended(seed=1, data_seed=1)) == 0


def test_the_rate_follows_its_schedule(given: Rows) -> None:
    made = loop(given, steps=5, warmup=2, learning_rate=0.3, schedule="linear")
    seen: list[float] = []
    made.optimizer.register_step_pre_hook(lambda *_: seen.append(made.optimizer.param_groups[0]["lr"]))
    made.run()
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.1])


def test_a_step_that_the_scaler_skips_moves_nothing(given: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU trains in no fp16, but it has a scaler."""

    def scaling(recipe: Any) -> Accelerator:
        made = accelerator(recipe)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # type: ignore[attr-defined]
        return made

    accelerator = environment.accelerator
    monkeypatch.setattr(environment, "accelerator", scaling)
    made = loop(given, steps=4, clip=None, schedule="linear", learning_rate=0.4)
    weight = made.session.model.classifier.weight
    steps = iter(range(4))
    weight.register_hook(lambda gradient: gradient * (math.inf if next(steps) == 1 else 1))
    followed: list[int] = []
    monkeypatch.setattr(made.session, "after_step", lambda: followed.append(made.session.step))
    made.run()
    assert followed == [0, 2, 3]
    assert made.rate.get_last_lr() == pytest.approx([0.1, 0.1])
    assert made.accelerator.scaler.get_scale() == 4


@pytest.mark.parametrize("key", ["warmup", "eval_every", "save_every", "log_every"])
def test_a_schedule_point_past_the_end_names_its_key(given: Rows, tmp_path: Path, key: str) -> None:
    with pytest.raises(CookError, match="step 500 is past the end of the run") as caught:
        loop(given, epochs=2, folder=tmp_path, **{key: 500})
    assert caught.value.where == f"train.{key}"


def test_gradient_checkpointing_changes_memory_alone(given: Rows) -> None:
    plain, again = (
        loop(given, student=model(dropout=0.2), steps=2, gradient_checkpointing=wanted)
        for wanted in (False, True)
    )
    forwards: list[int] = []
    layer = again.session.model.bert.encoder.layer[0].intermediate
    handle = layer.register_forward_hook(lambda *_: forwards.append(1))
    for one, other in zip(gradients(plain), gradients(again), strict=True):
        assert furthest(one, other) == 0
    handle.remove()
    assert len(forwards) == 4, "twice a step"
    assert not again.session.model.is_gradient_checkpointing


def test_evaluations_fall_on_their_schedule_points_and_on_the_end(given: Rows) -> None:
    made = loop(given, steps=5, eval_every=2, metrics=({"accuracy": 0.5} for _ in range(9)))
    made.run()
    assert [entry["step"] for entry in made.history if "metrics" in entry] == [2, 4, 5]
    made = loop(given, epochs=2, eval_every="1 epoch", log_every=3, metrics=iter([{"loss": 1.0}] * 3))
    made.run()
    assert [entry["step"] for entry in made.history if "metrics" in entry] == [4, 8]
    assert [entry["step"] for entry in made.history if "loss" in entry] == [3, 6, 8]


ACCURACY = [0.9, 0.8, 0.5, 0.7, 0.6, 0.7]
"""Of each step; the window of PRUNE closes with the third."""


def selecting(
    given: Rows, folder: Path | None = None, **train: Any
) -> tuple[Loop, dict[int, dict[str, Tensor]]]:
    """A loop that selects the best of ACCURACY, and the weights that each evaluation saw."""
    seen: dict[int, dict[str, Tensor]] = {}

    def metrics() -> Iterator[dict[str, float]]:
        while True:
            seen[made.done] = {name: value.clone() for name, value in weights(made).items()}
            accuracy = ACCURACY[max(0, made.done - 1)]
            yield {"accuracy": accuracy, "loss": accuracy}

    options = {"steps": 6, "select": "best", "eval_every": 1, "passes": [PRUNE], **train}
    made = loop(given, metrics=metrics(), folder=folder, **options)
    return made, seen


@pytest.mark.parametrize(("metric", "step"), [(None, 4), ("accuracy", 4), ("loss", 3)])
def test_the_best_is_chosen_after_every_window_has_closed(given: Rows, metric: str | None, step: int) -> None:
    made, seen = selecting(given, metric=metric)
    made.run()
    assert made.best is not None
    assert made.best[1] == step
    assert furthest(weights(made), seen[step]) == 0
    assert made.session.masks.state_dict().keys(), "and the masks are those of that step"


def test_the_best_survives_an_interrupt(given: Rows, tmp_path: Path) -> None:
    first, seen = selecting(given, tmp_path)
    count = iter(range(1, 9))
    first.optimizer.register_step_post_hook(
        lambda *_: signal.raise_signal(signal.SIGTERM) if next(count) == 5 else None
    )
    with pytest.raises(Interrupted, match="stopped after step 5 of 6"):
        first.run()
    second, _ = selecting(given, tmp_path)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    second.load_state_dict(checkpoint.load(newest))
    second.run()
    assert second.best == (0.7, 4)
    assert furthest(weights(second), seen[4]) == 0


def test_the_last_step_is_kept_for_what_comes_after(given: Rows, tmp_path: Path) -> None:
    loop(given, folder=tmp_path, steps=5, save_every=3).run()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert checkpoint.step_of(newest) == 5
    again = loop(given, folder=tmp_path, steps=5, save_every=3)
    again.load_state_dict(checkpoint.load(newest))
    before = copy.deepcopy(again.session.module.state_dict())
    again.run()
    assert all(torch.equal(value, before[name]) for name, value in again.session.module.state_dict().items())


@pytest.mark.parametrize(
    ("passes", "step"),
    [
        (["quant.qat", "distill.logits"], 1),
        ([{"quant.qat": {"start": 2, "observer": "moving"}}], 4),
        ([{"quant.qat": {"start": 6}}], None),
        ([{"prune.weights": {"sparsity": 0.5, "end": "100%"}}], 6),
    ],
)
def test_a_pass_without_an_end_does_not_keep_the_best_waiting(
    given: Rows, passes: list[Any], step: int | None
) -> None:
    made, seen = selecting(given, passes=passes)
    made.run()
    assert (made.best[1] if made.best else None) == step
    assert furthest(weights(made), seen[step or 6]) == 0


def test_a_metric_that_is_not_there(given: Rows) -> None:
    made, _ = selecting(given, metric="bleu")
    with pytest.raises(RunError, match="there is no metric 'bleu' to select by; there are accuracy, loss"):
        made.run()


def test_two_processes_equal_one(given: Rows, tmp_path: Path) -> None:
    alone = loop(given, **SEVERAL)
    alone.run()
    file = tmp_path / "weights.safetensors"
    printed = torchrun("tests.helpers.loops", str(file), COOK_CACHE=str(tmp_path / "cache"))
    assert furthest(load_file(file), weights(alone)) < 1e-5
    processes, told = printed.split(maxsplit=1)
    assert processes == "2"
    found = dict(pairs(told))
    assert [found[step] for step in range(1, 6)] == pytest.approx(losses(alone), abs=1e-5)


def pairs(text: str) -> Iterator[tuple[int, float]]:
    """`{1: 0.5, 2: 0.25}` as pairs."""
    for item in text.strip().strip("{}").split(", "):
        step, value = item.split(": ")
        yield int(step), float(value)
