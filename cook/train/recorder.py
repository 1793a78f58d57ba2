"""Per-pass accounting: the model before a pass is attached, at both ends of its window, and finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cook.model.nn.masks import Masks
from cook.model.probe.measure import Tally, tally
from cook.passes import Pass

Metrics = dict[str, float]
State = dict[str, Any]


def _amounts() -> dict[str, int]:
    return {"zeros": 0, "removed": 0, "bytes": 0}


class StateRecorder:
    """Records states of a model; equal states are evaluated once.

    Args:
        model: the model that passes change, in place.
        passes: the passes whose states are recorded.
        evaluate: returns the validation metrics of the present model; `{}` without data.
        macs: returns multiply-accumulates of the present model; None if they cannot be counted.
        dtype: storage dtype of floating-point weights; None for their own.
        masks: of the session; they mark what will be removed from the model at the end.
    """

    def __init__(
        self,
        model: nn.Module,
        passes: Sequence[Pass],
        *,
        evaluate: Callable[[], Metrics],
        macs: Callable[[], int | None],
        dtype: torch.dtype | None = None,
        masks: Masks | None = None,
    ):
        self.model, self.passes = model, passes
        self._evaluate, self._macs, self._dtype, self._masks = evaluate, macs, dtype, masks
        self.states: dict[str, list[State]] = {each.id: [] for each in passes}
        self.whole = tally(model, dtype).parameters
        self.amounts: dict[str, dict[str, int]] = {each.id: _amounts() for each in passes}
        """The direct changes by each pass: `zeros` added, parameters `removed`, `bytes` added."""
        self._last: tuple[tuple[int, Tally], State] | None = None
        self._attached: dict[str, int] = {}

    @contextmanager
    def acting(self, each: Pass) -> Iterator[None]:
        """Accumulate the changes that `each` makes in the context: when attached, and when it finishes.

        Passes act one at a time there, so nothing is counted twice, even if windows overlap. Weights held at
        zero by a mask become zero in between, and count for the pass that owns the mask, including those that
        were zero before.
        """
        finishing = each.id in self._attached
        held = self._masks.held(each.id) if self._masks is not None else 0
        zeros = max(0, held - self._attached[each.id]) if finishing else 0
        before = tally(self.model, self._dtype, as_finished=False)
        yield
        after = tally(self.model, self._dtype, as_finished=False)
        amounts = self.amounts[each.id]
        amounts["zeros"] += zeros + after.zeros - before.zeros
        amounts["removed"] += before.parameters - after.parameters
        amounts["bytes"] += after.bytes - before.bytes
        if not finishing:
            self._attached[each.id] = self._masks.held(each.id) if self._masks is not None else 0

    def attaching(self, each: Pass) -> None:
        """Called immediately before a pass is attached."""
        self._record("attached", each, 0)

    def window_opens(self, step: int) -> None:
        """Called before `before_step(step)`."""
        for each in self.passes:
            if each.window.start == step:
                self._record("start", each, step)

    def window_closes(self, done: int) -> None:
        """Called after `done` steps."""
        for each in self.passes:
            if each.window.end == done > each.window.start:
                self._record("end", each, done)

    def finished(self, done: int) -> State:
        """Record the finished model for every pass."""
        self._last = None
        state = self.state(done)
        for each in self.passes:
            self.states[each.id].append({**state, "when": "finished", "step": done})
        return state

    def state(self, step: int) -> State:
        """The state of the model after `step` steps."""
        count = tally(self.model, self._dtype, self._masks)
        if self._last is None or self._last[0] != (step, count):
            self._last = (step, count), self._describe(count)
        return dict(self._last[1])

    def state_dict(self) -> dict[str, Any]:
        return {"states": self.states, "whole": self.whole}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.states = {name: list(rows) for name, rows in state["states"].items()}
        self.whole, self._last = state["whole"], None

    def _describe(self, count: Tally) -> State:
        return {
            "parameters": count.parameters,
            "zeros": count.zeros,
            "sparsity": count.zeros / max(1, count.parameters),
            "bytes": count.bytes,
            "macs": self._macs(),
            "metrics": self._evaluate(),
            "removed": self.whole - count.parameters,
        }

    def _record(self, when: str, each: Pass, step: int) -> None:
        rows = self.states[each.id]
        if not any(row["when"] == when for row in rows):
            rows.append({**self.state(step), "when": when, "step": step})
