"""The bar: lively for a person, seldom in a log."""

from __future__ import annotations

import io
import sys

import pytest

from cook.train.progress import bar


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


def test_a_bar_that_is_not_shown_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with bar(3, shown=False) as made:
        made.update(3)
    assert not stream.getvalue()
