"""The training loop.

    for each step:
        if a pass's window opens            record its state
        before_step                         update schedules
        for each micro-batch: seed, forward, backward of its share
        if a term is not finite             stop the run
        clip, optimizer step (which applies hard masks), after_step, learning rate
        if a pass's window closes           record its state
        evaluate, checkpoint, stop at a signal

Orders and seeds are functions of the step, so that a resumed run is bitwise identical.
"""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from cook.data import batches
from cook.data.tasks import Task
from cook.errors import CookError, RunError
from cook.failures import interrupted, memory_errors, not_finite
from cook.progress import bar
from cook.recipe.text.schedule_point import SchedulePoint
from cook.sections import TrainSection
from cook.session import Session
from cook.teacher.teacher import not_finite as not_finite_teacher
from cook.train import checkpoint, processes
from cook.train.evaluate import metric_named
from cook.train.optimizer import adamw, scheduler
from cook.train.recompute import recomputing
from cook.train.recorder import StateRecorder
from cook.train.seeds import seed_everything
from cook.train.signals import Signals


def steps_of(train: TrainSection, rows: int) -> tuple[int, int]:
    """(total steps, steps per epoch) of a train section for a number of rows."""
    per_epoch = math.ceil(rows / train.batch_size)
    return train.steps or max(1, round((train.epochs or 1) * per_epoch)), per_epoch


class Loop:
    """Trains the module of a session.

    Args:
        session: attached.
        task, data: bound task, and the prepared training rows.
        train: the recipe's section.
        accelerator: device, precision, processes.
        accounting: records states and evaluations.
        folder: for checkpoints; None disables them.
        identity: what a checkpoint must match to be resumed.
        bar: whether to show a progress bar.
    """

    def __init__(
        self,
        session: Session,
        task: Task,
        data: Dataset,
        train: TrainSection,
        *,
        accelerator: Accelerator,
        recorder: StateRecorder,
        folder: Path | None,
        identity: Mapping[str, Any],
        bar: bool = True,
    ):
        self.session, self.task, self.data, self.train = session, task, data, train
        self.accelerator, self.recorder, self.folder = accelerator, recorder, folder
        self.identity = dict(identity)
        self.total, self.per_epoch = session.total_steps, session.steps_per_epoch
        self.bar = bar and accelerator.is_main_process
        self.history: list[dict[str, Any]] = []
        self.recent: list[dict[str, float]] = []
        self.done = 0
        self.best: tuple[float, int] | None = None
        self._best_state: dict[str, Any] = {}
        self.seconds = 0.0
        self.data_seed = train.seed if train.data_seed is None else train.data_seed
        self.eval_every = self._every("eval_every")
        self.save_every = self._every("save_every") if folder is not None else 0
        self.log_every = self._every("log_every")
        self.optimizer = adamw(
            session.module,
            learning_rate=train.learning_rate,
            weight_decay=train.weight_decay,
            betas=train.betas,
            epsilon=train.epsilon,
            fused=accelerator.scaler is None,
        )
        session.bind(self.optimizer)
        warmup = self._step_of("warmup")
        self.rate = scheduler(self.optimizer, total=self.total, warmup=warmup, schedule=train.schedule)
        self.module, self.prepared = accelerator.prepare(session.module, self.optimizer)
        session.place(accelerator.device)

    def run(self) -> None:
        """Train from the current step to the end.

        Raises:
            RunError: a loss is not finite, memory is insufficient, or a checkpoint cannot be written.
            Interrupted: on a signal, after a checkpoint was written.
        """
        started = time.monotonic()
        self.module.train()
        with (
            Signals() as signals,
            memory_errors(self.train),
            recomputing(self.session.model, self.train.gradient_checkpointing),
            bar(self.total, self.done, shown=self.bar) as progress,
        ):
            for step, micro_batches in zip(range(self.done, self.total), self._updates(), strict=False):
                self.recorder.window_opens(step)
                self.session.before_step(step)
                self.recent.append(self._update(step, micro_batches))
                self.done = step + 1
                self.recorder.window_closes(self.done)
                if self._due(self.log_every) or self.done == self.total:
                    self._log(progress)
                if self._due(self.eval_every) or self.done == self.total:
                    self._evaluate()
                progress.update()
                stop = processes.any_of(self.accelerator, signals.received)
                # After the last step too: saving and measuring the result may fail or be interrupted.
                if stop or self._due(self.save_every) or self.done == self.total:
                    self.seconds += time.monotonic() - started
                    started = time.monotonic()
                    self.save()
                if stop:
                    raise interrupted(self.done, self.total, kept=self.folder is not None)
        self.seconds += time.monotonic() - started
        if self.train.select == "best" and self.best is not None:
            self.session.load_state_dict(self._best_state)

    def _update(self, step: int, micro_batches: batches.Update) -> dict[str, float]:
        """One optimizer update; returns the loss terms, weighted and unweighted, as means over its items."""
        counts = [0 if empty else self.task.count(batch) for batch, empty in micro_batches]
        total = processes.total(self.accelerator, sum(counts))
        sums: dict[str, Tensor] = {}
        for index, ((batch, _), count) in enumerate(zip(micro_batches, counts, strict=True)):
            seed_everything(self.train.seed, step, index, self.accelerator.process_index)
            batch = batches.placed(batch, self.accelerator.device)
            last = index == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                terms = self.module(batch)
                share = count / total
                # DDP averages over processes, but the loss is a mean over the items of all of them.
                self.accelerator.backward(sum(terms.values()) * (share * self.accelerator.num_processes))
            for name, value in terms.items():
                for key, term in ((name, value), (f"{name} (unweighted)", self.session.unweighted[name])):
                    sums[key] = sums.get(key, 0.0) + share * term.detach().float()
        norm = None
        if self.train.clip is not None:
            norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.train.clip)
        values = self._finite(step, sums, norm, micro_batches)
        self.prepared.step()
        self.prepared.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.session.after_step()
            self.rate.step()
        return values

    def _finite(
        self, step: int, sums: dict[str, Tensor], norm: Tensor | None, update: batches.Update
    ) -> dict[str, float]:
        """All terms as numbers, in one transfer; RunError if one is not finite."""
        if norm is not None:
            # This term is equal in all processes, so each contributes an equal share.
            sums = {**sums, "gradient norm": norm.detach().float() / self.accelerator.num_processes}
        values = torch.stack([value.reshape(()) for value in sums.values()])
        # Each process has its share of a term; all must detect, and stop at, a NaN in any of them.
        values = processes.summed(self.accelerator, values)
        found = dict(zip(sums, values.tolist(), strict=True))
        for name, value in found.items():
            # Under fp16 the scaler handles infinite gradients and skips the step itself.
            scaled = name == "gradient norm" and self.accelerator.scaler is not None
            if not math.isfinite(value) and not scaled:
                term = name.removesuffix(" (unweighted)")
                suspects = () if term in ("task", "gradient norm") else self.session.teachers
                placed = [batches.placed(batch, self.accelerator.device) for batch, _ in update]
                with self.accelerator.autocast():
                    who = not_finite_teacher(suspects, placed)
                raise not_finite(term, value, step, self.total, who)
        return found

    def _updates(self) -> Iterator[batches.Update]:
        """The updates from the current step on, over all remaining epochs."""
        lengths = batches.lengths(self.data)
        epoch, offset = divmod(self.done, self.per_epoch)
        while True:
            updates = batches.plan_epoch(
                lengths, len(self.data), self.train.batch_size, self.data_seed, epoch
            )
            yield from batches.epoch_loader(
                self.data,
                self.task,
                updates[offset:],
                self.train.accumulate,
                self.accelerator.process_index,
                self.accelerator.num_processes,
                self.train.workers,
                numbered=any(each.by_row for each in self.session.teachers),
            )
            epoch, offset = epoch + 1, 0

    def _evaluate(self) -> None:
        state = self.recorder.state(self.done)
        metrics = state["metrics"]
        self.history.append({"step": self.done, "metrics": metrics})
        curves = {f"validation/{name}": value for name, value in metrics.items()}
        curves |= {f"model/{name}": state[name] for name in ("sparsity", "parameters", "bytes")}
        self.accelerator.log(curves, step=self.done)
        settled = all(each.settled(self.done) for each in self.session.passes)
        name = metric_named(self.train.metric or self.task.metric, metrics)
        if self.train.select == "best" and settled:
            if name not in metrics:
                raise RunError(f"there is no metric {name!r} to select by; there are {', '.join(metrics)}")
            value = -metrics[name] if name in self.task.lower_is_better else metrics[name]
            if self.best is None or value > self.best[0]:
                self.best = (value, self.done)
                self._best_state = copy.deepcopy(self.session.state_dict())

    def _log(self, progress: Any) -> None:
        rows, self.recent = self.recent, []
        names = dict.fromkeys(name for row in rows for name in row)
        means = {name: statistics.fmean(row[name] for row in rows if name in row) for name in names}
        rate = self.rate.get_last_lr()[0]
        self.history.append({"step": self.done, "loss": means, "learning_rate": rate})
        self.accelerator.log(
            {**{f"loss/{k}": v for k, v in means.items()}, "learning_rate": rate}, step=self.done
        )
        terms = [
            f"{name} {value:.3f}"
            for name, value in means.items()
            if not name.endswith("(unweighted)") and name != "gradient norm"
        ]
        progress.set_postfix_str(
            ", ".join([*terms, *filter(None, (p.status() for p in self.session.passes))]), refresh=False
        )

    def save(self) -> None:
        """Write a checkpoint of all state that the rest of the run depends on."""
        if self.folder is not None and self.accelerator.is_main_process:
            checkpoint.save(self.folder, self.done, self.state_dict())
        self.accelerator.wait_for_everyone()

    def state_dict(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "session": self.session.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self._best_state,
            "run": {
                "identity": self.identity,
                "done": self.done,
                "rate": {k: v for k, v in self.rate.state_dict().items() if k != "lr_lambdas"},
                "scaler": scaler.state_dict() if scaler is not None else None,
                "history": self.history,
                "recent": self.recent,
                "accounting": self.recorder.state_dict(),
                "best": self.best,
                "seconds": self.seconds,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a checkpoint of the same recipe and number of processes."""
        run = state["run"]
        self.session.load_state_dict(state["session"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict({**run["rate"], "lr_lambdas": [None for _ in self.rate.lr_lambdas]})
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(run["scaler"])
        self.done, self.history, self.seconds = run["done"], list(run["history"]), run["seconds"]
        self.recent = list(run["recent"])
        self.best, self._best_state = tuple(run["best"]) if run["best"] else None, state["best"]
        self.recorder.load_state_dict(run["accounting"])
        self.session.step = self.done

    def _step_of(self, key: str) -> int:
        """The step of a schedule point in the train section."""
        try:
            return SchedulePoint.parse(getattr(self.train, key)).step(self.total, self.per_epoch)
        except CookError as error:
            raise self.task.error(f"train.{key}", error.message, error.hint) from error

    def _every(self, key: str) -> int:
        """The interval in steps; 0 for never."""
        return 0 if getattr(self.train, key) is None else max(1, self._step_of(key))

    def _due(self, every: int) -> bool:
        return bool(every) and self.done % every == 0
