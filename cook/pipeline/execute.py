"""What `cook run` and `cook.apply` share: attach, train, finish, and account for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from cook.data import calibration
from cook.data.batches import fetch
from cook.data.corpus import corpus
from cook.errors import nearest
from cook.failures import evaluation_memory_errors
from cook.model.nn.masks import Masks
from cook.model.probe import measure
from cook.model.probe.equivalence import check_folded, outputs, outputs_to_be, round_to
from cook.model.tokens.id_map import TokenIdMap
from cook.passes import Pass
from cook.pipeline.prepare import RunContext
from cook.session import Session
from cook.teacher.cached import fill
from cook.teacher.teacher import read_alike
from cook.train.evaluate import evaluate, metric_named
from cook.train.loop import Loop, steps_of
from cook.train.recorder import State, StateRecorder

SAMPLED = 64
"""Rows among which the longest is the example that multiply-accumulates and latency are told for."""


@dataclass
class RunResult:
    """What came of it: the model (or its source) as it was and is, and how passes and training went.

    Attributes:
        sample: one example without its label, as the finished model reads it.
        processor: the one that fits the finished model; the given one unless a pass took tokens away.
        token_id_map: which tokens that was; None when all are there.
    """

    before: State
    after: State
    states: dict[str, list[State]]
    amounts: dict[str, dict[str, int]]
    facts: dict[str, dict[str, Any]]
    train: dict[str, Any] | None
    sample: dict[str, Tensor] | None
    processor: Any | None = None
    token_id_map: TokenIdMap | None = None


def execute(work: RunContext) -> RunResult:
    """Attach the passes, train if there is something to train on, finish; the model is changed in place.

    Raises:
        CookError: a pass cannot do what it is asked to.
        RunError: training failed, or the finished model does not give what the trained one gave.
    """
    _check_supported(work)
    work.model.to(work.accelerator.device)
    sample = example(work)
    masks = Masks(work.model)
    recorder = state_recorder(work, work.model, work.passes, masks)
    work.say("measuring the model")
    before = recorder.state(0) if work.source is None else _of_source(work, work.source)
    recorder.whole = before["parameters"]
    _check_metric(work, before["metrics"])
    total, per_epoch = steps_of(work.train, len(work.rows["train"])) if work.train else (0, 1)
    loop = None
    if any("calibration" in each.wants() for each in work.passes):
        work.say("calibrating")
    with _session(work, recorder, masks, total, per_epoch) as session:
        if total:
            _fill(work, session)
            loop = _loop(work, session, recorder)
            loop.run()
            # A pass whose last step the fp16 scaler skipped is still to reach its end.
            session.before_step(total)
        numbers = session.token_id_map
        trained = outputs_to_be(work.model, sample, numbers) if sample else None
        work.say("finishing")
        session.finish()
    round_to(work.model, work.dtype)
    if sample and trained is not None:
        given = outputs(work.model, numbers(sample) if numbers else sample)
        check_folded(trained, given, work.dtype or work.model.dtype)
    if numbers:
        _read_again(work, session.tokenizer)
    after = recorder.finished(total)
    told = _told(work, loop, total / per_epoch, after["metrics"]) if loop else None
    return RunResult(
        before,
        after,
        recorder.states,
        recorder.amounts,
        session.facts,
        told,
        sample=example(work),
        processor=work.processor,
        token_id_map=numbers,
    )


def _session(work: RunContext, recorder: StateRecorder, masks: Masks, total: int, per_epoch: int) -> Session:
    """The passes, attached to the model."""
    return Session(
        work.passes,
        work.model,
        total_steps=total,
        steps_per_epoch=per_epoch,
        teacher=work.teacher,
        source=work.source,
        before_attach=recorder.attaching,
        around=recorder.acting,
        calibration=_calibration(work),
        masks=masks,
        tokenizer=work.processor if hasattr(work.processor, "get_vocab") else None,
        corpus=corpus(work.task, work.raw),
        recalled=None if work.state is None else work.state["session"]["passes"],
    )


def state_recorder(
    work: RunContext, model: PreTrainedModel, passes: Sequence[Pass] = (), masks: Masks | None = None
) -> StateRecorder:
    """Records what becomes of a model, by the data and the task of a run."""

    def macs() -> int | None:
        sample = example(work)  # now: a pass may have changed how it is read
        return measure.macs(model, sample) if sample else None

    return StateRecorder(
        model,
        passes,
        evaluate=lambda: _metrics(work, model),
        macs=macs,
        dtype=work.dtype,
        masks=masks,
    )


def _of_source(work: RunContext, source: PreTrainedModel) -> State:
    """The state of the source, which is back in its place afterwards."""
    place: Any = source.device
    read_alike(source, work.model)
    moved: Any = source
    state = state_recorder(work, moved.to(work.accelerator.device)).state(0)
    moved.to(place)
    return state


def _check_supported(work: RunContext) -> None:
    """Refuse a pass that cannot work in several processes, or with recomputed layers, if it would have to."""
    asked = {
        "ddp": work.accelerator.num_processes > 1,
        "checkpointing": bool(work.train and work.train.gradient_checkpointing),
    }
    for each in work.passes:
        if missing := [name for name, wanted in asked.items() if wanted and name not in each.supports]:
            raise each.error(
                f"does not work with {' and '.join(missing)} yet", hint="leave out one of the two"
            )


def example(work: RunContext) -> dict[str, Tensor] | None:
    """One example, without its label: the longest of the first rows of the validation split."""
    if work.task is None or not (rows := work.rows.get("validation", work.rows.get("train"))):
        return None
    first = list(range(min(SAMPLED, len(rows))))
    if "length" in rows.column_names:
        lengths = rows[first]["length"]
        first = [max(first, key=lambda index: lengths[index])]
    batch = work.task.collate(fetch(rows, first[:1]))
    return {name: value.to(work.accelerator.device) for name, value in batch.items() if name != "labels"}


def _read_again(work: RunContext, tokenizer: Any) -> None:
    """Prepare what the finished model is measured on by its own tokenizer, as everybody will."""
    assert tokenizer is not None
    work.processor = tokenizer
    split = "validation" if "validation" in work.rows else "train"
    if work.task is not None and split in work.rows:
        work.rows = {**work.rows, split: work.task.prepare(work.raw[split], tokenizer)}


def _loop(work: RunContext, session: Session, recorder: StateRecorder) -> Loop:
    assert work.task is not None
    assert work.train is not None
    loop = Loop(
        session,
        work.task,
        work.rows["train"],
        work.train,
        accelerator=work.accelerator,
        recorder=recorder,
        folder=work.folder,
        identity=work.identity,
        bar=work.progress,
    )
    if work.state is not None:
        loop.load_state_dict(work.state)
        work.state = None
    if work.begun is not None:
        work.begun(loop)
    return loop


def _calibration(work: RunContext) -> calibration.Examples | None:
    """What passes look at while nothing trains."""
    if work.calibration is not None or work.task is None or "train" not in work.rows:
        return work.calibration
    seed = 0 if work.train is None else work.train.seed
    batch_size = work.evaluation.batch_size
    return calibration.sampled(work.rows["train"], work.task, batch_size=batch_size, seed=seed)


def _fill(work: RunContext, session: Session) -> None:
    """Let the cached teachers say all that is asked of them, now that the passes have asked."""
    assert work.task is not None
    fill(
        session.teachers,
        work.task,
        work.rows["train"],
        work.accelerator,
        batch_size=work.evaluation.batch_size,
        progress=work.progress,
    )


def _metrics(work: RunContext, model: PreTrainedModel) -> dict[str, float]:
    if work.task is None or "validation" not in work.rows:
        return {}
    batch_size = work.evaluation.batch_size
    with evaluation_memory_errors(batch_size):
        return evaluate(
            model,
            work.rows["validation"],
            work.task,
            batch_size=batch_size,
            limit=work.evaluation.limit,
            device=work.accelerator.device,
            progress=work.progress and work.accelerator.is_main_process,
        )


def _check_metric(work: RunContext, metrics: Mapping[str, float]) -> None:
    """Whether the metric that the recipe asks for is measured at all: not to be found out after training."""
    if work.train is None or work.task is None:
        return
    if not metrics:
        if work.train.select == "best":
            raise work.task.error("train.select", "without validation data there is no best checkpoint")
        return
    name = metric_named(work.train.metric or work.task.metric, metrics)
    if name not in metrics:
        known = f"there are {', '.join(metrics)}"
        raise work.task.error("train.metric", f"there is no metric {name!r}", nearest(name, metrics) or known)


def _told(work: RunContext, loop: Loop, epochs: float, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What the report says of training; `metrics` are those of the finished model."""
    assert work.task is not None
    assert work.train is not None
    best = loop.best if work.train.select == "best" else None
    return {
        "steps": loop.total,
        "epochs": round(epochs, 3),
        "seconds": round(loop.seconds, 1),
        "selected": "best" if best else "last",
        "selected_step": best[1] if best else loop.total,
        "metric": metric_named(work.train.metric or work.task.metric, metrics),
        "history": loop.history,
    }
