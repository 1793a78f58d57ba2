"""The bar: lively for a person, seldom in a log."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from cook.progress import LATE_SECONDS, bar
from cook.train.evaluate import evaluate
from tests.train.test_evaluate import setting

__all__ = ["setting"]


class Terminal(io.StringIO):
    """A stream that somebody watches."""

    def isatty(self) -> bool:
        return True


def drawings(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a bar is drawn in a run of 100 steps, one a second."""
    now = [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    with bar(100) as made:
        made._time = lambda: now[0]
        made.start_t = made.last_print_t = 0.0
        for _ in range(100):
            now[0] += 1
            made.set_postfix_str(f"task {now[0]}", refresh=False)
            made.update()
    return stream.getvalue().count("\r")


def test_a_log_holds_few_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawings(io.StringIO(), monkeypatch) <= 6
    assert drawings(Terminal(), monkeypatch) >= 90


def test_the_facts_fit_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    facts = "task 0.123, logits 0.456, sparsity 58.9 %"
    with bar(12_345, 1_234) as made:
        made.ncols, made.dynamic_ncols = 80, None
        made.set_postfix_str(facts)
    drawn = stream.getvalue().split("\r")
    assert facts in drawn[-1] or facts in drawn[-2]
    assert max(map(len, drawn)) <= 81  # and the line's end


def test_an_evaluation_is_drawn_only_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = Terminal(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    with bar(20, unit="batches", passing="evaluating") as made:
        made._time = lambda: now[0]
        made.start_t = made.last_print_t = 0.0
        for _ in range(20):
            assert ("evaluating" in stream.getvalue()) == (now[0] >= LATE_SECONDS)
            now[0] += 1
            made.update()
    assert "evaluating: 6/20 batches" in stream.getvalue()
    assert stream.getvalue().split("\r")[-1].strip() == ""  # it is gone afterwards


def test_evaluations_of_a_run_have_a_bar(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("cook.progress.LATE_SECONDS", 0.0)
    model, rows, task = setting
    evaluate(model, rows, task, batch_size=4)
    assert not stream.getvalue()
    evaluate(model, rows, task, batch_size=4, progress=True)
    assert "evaluating: " in stream.getvalue()


def test_a_bar_that_is_not_shown_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with bar(3, shown=False) as made:
        made.update(3)
    assert not stream.getvalue()
