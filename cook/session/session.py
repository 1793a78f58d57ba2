"""The life cycle of passes bound to a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from cook.context import Context, Corpus, Examples
from cook.errors import CookError
from cook.model.edits.depth import STAYS, compact, left_out, missing
from cook.model.edits.plain import current, settle
from cook.model.hub.quantizer import attach_quantizer
from cook.model.nn import sharing
from cook.model.nn.hooks import Hooks
from cook.model.nn.masks import Masks
from cook.model.probe.batch import ROWS
from cook.model.probe.equivalence import check_folded, outputs, outputs_to_be
from cook.model.probe.example import Unmeasured, first_through, random_examples, small_example
from cook.model.probe.layerdrop import without_layerdrop
from cook.passes import PHASES, Pass, Window
from cook.session.loop_checks import Steps
from cook.session.loss_terms import SessionModule, loss_terms, reach_all
from cook.teacher.teacher import Given, teachers


class Session(Context):
    """The life cycle of a run: attach the passes, run step by step, finish, and remove all hooks.

    Args:
        passes: in recipe order.
        model: with a head that returns a loss for a batch with labels; changed in place.
        total_steps: optimizer steps of the run; 0 without training, when one-shot passes act immediately.
        steps_per_epoch: optimizer steps of one epoch, for schedule points in epochs.
        teacher: a model, `"self"` for a copy of the model as it is now, a list of those, or of pairs of one
            and its weight, or None. Teachers are put into eval mode permanently, without gradients and with
            the padding token of `model`.
        source: the model from which `model` was made as its student: the meaning of `"self"` then.
        before_attach: called with each pass immediately before it is attached.
        around: creates the context in which a pass is attached, and again that in which it finishes; for
            measuring the changes by each pass.
        calibration: returns batches with at most the given number of examples, the same at every call, for
            passes that use data outside of training.
        masks: empty masks of `model`, for callers that read them; None creates them.
        tokenizer: of the model's texts, for passes that use it; not modified.
        corpus: returns the texts of given files, or those of the run for None.
        recalled: states of the passes by id, to resume a run.

    Raises:
        CookError: a requirement of a pass is missing, or it refuses the model. All hooks are removed then.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        model: PreTrainedModel,
        *,
        total_steps: int,
        steps_per_epoch: int = 1,
        teacher: Given = None,
        source: PreTrainedModel | None = None,
        before_attach: Callable[[Pass], None] | None = None,
        around: Callable[[Pass], AbstractContextManager[Any]] = nullcontext,
        calibration: Examples | None = None,
        masks: Masks | None = None,
        tokenizer: Any | None = None,
        corpus: Corpus | None = None,
        recalled: Mapping[str, Any] | None = None,
    ):
        self.passes = list(passes)
        self._around = around
        hooks = Hooks()
        super().__init__(
            model,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            hooks=hooks,
            teachers=teachers(model, teacher, hooks, source),
            masks=masks,
            calibration=calibration,
            tokenizer=tokenizer,
            corpus=corpus,
        )
        self._owners = self.passes
        self._check_needs()
        self._steps = Steps()
        self._finished = False
        self._layerdrop = ExitStack()
        self.unweighted: dict[str, Tensor] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.module = SessionModule(self)
        try:
            for each in sorted(self.passes, key=lambda each: each.phase != "shape"):
                each.window = self._window(each)
                if before_attach is not None:
                    before_attach(each)
                if recalled is not None:
                    each.recall(recalled[each.id])
                with self._around(each):
                    self._attach(each)
            self._check_left_out()
            for each in self.passes:
                # Before tensors are watched: the gated output is the next module's input.
                each.open(self)
            self._tensors.open()
            if self._tensors.read:
                self._layerdrop.enter_context(without_layerdrop(self.model))
            for one in self.teachers:
                one.open()
        except BaseException:
            self.close()
            raise

    def bind(self, optimizer: Optimizer) -> None:
        """Apply the hard masks after each step that this optimizer actually takes.

        Several optimizers are bound one by one. A wrapper of accelerate is unwrapped.
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no step hooks
        self._steps.bound = True
        self.hooks.after_step(inner, self._stepped)
        rates = [group.get("initial_lr", group["lr"]) for group in inner.param_groups]
        self.learning_rate = max(map(float, rates))

    def place(self, device: torch.device | str) -> None:
        """Move the teachers to the student's device."""
        for each in self.teachers:
            each.place(device)

    def before_step(self, step: int) -> None:
        """Update every schedule to `step`, counted from 0."""
        if step > self.total_steps > 0 and self.step <= self.total_steps:
            _warn(f"step {step:,} is beyond the {self.total_steps:,} steps of the session: no pass acts")
        self.step = step
        self._steps.begin()
        for each in self.passes:
            each.before_step(self)

    def after_step(self) -> None:
        """Call this after each actual optimizer step.

        Raises:
            CookError: `before_step` was not called, or the hard masks were not applied in this step.
        """
        self._steps.check(self.masks)
        for each in self.passes:
            each.after_step(self)
        self._let_go()

    def active(self) -> list[Pass]:
        """The passes whose window contains the current step."""
        return [each for each in self.passes if self.step in each.window]

    def terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a forward of the student and, if needed, the teacher, and return the weighted loss terms."""
        self.batch = {name: value for name, value in batch.items() if name != ROWS}
        for teacher in self.teachers:
            teacher.set_batch(batch)
        skipped = self._skipped()
        with self._tensors.recording(), left_out(self.anatomy, skipped):
            self.outputs = self.model(**self.batch)
        terms, self.unweighted = loss_terms(self, self.active())
        self._steps.learned |= self.trains and torch.is_grad_enabled()
        terms["task"] = reach_all(self, terms["task"], skipped)
        return terms

    def finish(self) -> None:
        """Finish every pass, by phase, restoring plain modules; then close the session.

        `facts` contains the results of each pass, by its id.

        Raises:
            CookError: a pass cannot finish, or weights that a mask holds at zero are not zero.
            RunError: the output of the finished model for a small example differs from that before.
        """
        self._finished = True
        try:
            self._steps.check_all(self.masks)
            self._layerdrop.close()
            if self.step < self.total_steps - 1:
                made = self.step + self._steps.moved
                _warn(
                    f"the loop made {made:,} of {self.total_steps:,} steps: schedules jump to their end;"
                    " give attach the number of steps that the loop makes"
                )
                # The loop ended early: run pending actions before any shape changes.
                self.before_step(self.total_steps)
            expected = self._probed()
            for phase in PHASES:
                for each in self.passes:
                    if each.phase == phase:
                        with self._around(each):
                            each.finish(self)
                        self.facts[each.id] = each.facts(self)
            sharing.check(self.model, self.blueprint.shared)
            self.blueprint = settle(self.model, current(self.model, compact(self.model, self.blueprint)))
            attach_quantizer(self.model, self.blueprint)
            if expected is not None:
                probe, before = expected
                after = outputs(self.model, self.token_id_map(probe) if self.token_id_map else probe)
                check_folded(before, after, self.model.dtype)
        finally:
            self.close()

    def _probed(self) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """A small example, and the expected outputs of the finished model; None if it does not run.

        Everything to be removed is masked to zero by now, so a model without it must have the same outputs.
        """
        if not self.passes:
            return None
        with suppress(Unmeasured):
            several = [*random_examples(self.model), small_example(self.model)]
            return first_through(
                several, lambda probe: (probe, outputs_to_be(self.model, probe, self.token_id_map))
            )
        return None

    def close(self) -> None:
        """Remove all hooks; the model keeps its present state."""
        self.hooks.close()
        self._layerdrop.close()
        self._let_go()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._steps.learned and not self._finished:
            _warn(
                "session.finish() was not called: the model still holds what only training needs, and saved"
                " as it is it is not compressed"
            )
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """All state needed to resume: tensors and plain values only."""
        return {
            "module": self.module.state_dict(),
            "masks": self.masks.state_dict(),
            "passes": {each.id: each.state_dict() for each in self.passes},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`, in a session of the same recipe and model."""
        self.module.load_state_dict(state["module"])
        self.masks.load_state_dict(state["masks"])
        for each in self.passes:
            each.load_state_dict(state["passes"][each.id])

    def _stepped(self) -> None:
        self.masks.apply()
        self._steps.applied = True

    def _skipped(self) -> list[str]:
        """The layers that the next forward skips; evaluations skip none."""
        if not self.model.training:
            return []
        return list(dict.fromkeys(name for each in self.active() for name in each.skipped_layers(self)))

    def _check_left_out(self) -> None:
        for owner, layers in self._skippable:
            if message := missing(self._tensors.read, layers):
                raise owner.error(message, hint=STAYS)

    def _let_go(self) -> None:
        self._tensors.clear()
        for each in self.teachers:
            each.forget()
        self.batch, self.outputs = {}, ModelOutput()

    def _attach(self, each: Pass) -> None:
        try:
            each.attach(self)
        except CookError as error:
            error.where = error.where or each.where
            raise

    def _window(self, each: Pass) -> Window:
        start = self.schedule_step(getattr(each.options, "start", 0), each, "start")
        end = self.schedule_step(getattr(each.options, "end", "100%"), each, "end")
        if end < start:
            raise each.error(f"ends at step {end}, before its start at step {start}", option="end")
        return Window(start, end)

    def _check_needs(self) -> None:
        for each in self.passes:
            wants = each.wants()
            if "training" in wants and not self.trains:
                raise each.error("needs training, and there is none", hint="give it data and a train section")
            if "teacher" in wants and not self.teachers:
                raise each.error("needs a teacher", hint="add `teacher: self`, or the teacher's path")
            if "calibration" in wants and self._calibration is None:
                hint = "give it data, or in Python `calibration=`: batches as the model takes them"
                raise each.error("needs examples to look at, and there are none", hint=hint)
            if "tokenizer" in wants and self.tokenizer is None:
                hint = "name one in model.tokenizer, or in Python give `tokenizer=`"
                raise each.error("needs the model's tokenizer, and there is none", hint=hint)


def _warn(line: str) -> None:
    warnings.warn(line, UserWarning, stacklevel=3)
