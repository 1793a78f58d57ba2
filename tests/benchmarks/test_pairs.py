"""The stopwatch, on a clock that the test winds itself, and the turns of two real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.pairs import Ratio, machine, measure, ratio, table
from benchmarks.turns import Loop


class Watch:
    """A clock that moves only when a rival works; `pace` is how slow the machine is at the moment."""

    def __init__(self) -> None:
        self.now, self.pace, self.calls = 0.0, 1.0, ""

    def rival(self, name: str, costs: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.calls += name
            self.now += next(costs) * self.pace

        return call


def always(cost: float) -> Iterator[float]:
    while True:
        yield cost


def test_rivals_take_turns_and_warm_up_is_left_out() -> None:
    watch = Watch()
    rivals = {
        "a": watch.rival("a", iter([9.0, 9.0, 1.0, 2.0, 3.0])),
        "b": watch.rival("b", iter([7.0, 7.0, 4.0, 5.0, 6.0])),
    }
    seconds = measure(rivals, rounds=3, warm_up=2, clock=lambda: watch.now)
    assert watch.calls == "ababababab"
    assert seconds == {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}


def test_a_machine_that_slows_down_does_not_move_the_ratio() -> None:
    watch = Watch()
    first = watch.rival("a", always(1.0))

    def slower() -> None:
        watch.pace *= 1.05
        first()

    rivals = {"a": slower, "b": watch.rival("b", always(1.25)), "again": watch.rival("a", always(1.0))}
    seconds = measure(rivals, clock=lambda: watch.now)
    found = ratio(seconds["b"], seconds["a"])
    assert found.middle == pytest.approx(1.25)
    assert (found.low, found.high) == (pytest.approx(1.25), pytest.approx(1.25))
    assert found.pairs == 60
    assert ratio(seconds["again"], seconds["a"]).middle == pytest.approx(1.0)


def test_the_interval_holds_the_median_and_the_bar_is_met_from_below() -> None:
    noisy = [1.0 + (7 * index % 20) / 100 for index in range(60)]
    found = ratio(noisy, [1.0] * 60)
    assert 1.0 < found.low < found.middle < found.high < 1.19
    assert found.middle == pytest.approx(1.095)
    assert found.spread == pytest.approx(0.1, abs=0.02)
    assert found.within(found.low)
    assert not found.within(found.low - 1e-6)
    assert ratio(noisy, [1.0] * 60) == found  # the same figures give the same interval


def test_what_is_printed() -> None:
    assert str(Ratio(1.02, 1.01, 1.031, 0.05, 60)) == "1.020 [1.010, 1.031], spread 0.050, 60 pairs"
    assert table({"a": [0.001, 0.002, 0.003]}).splitlines()[-1] == "| a | 2.00 | 1.50 - 2.50 |"
    assert "threads" in machine()
    assert "torch" in machine()


def three_batches(pause: Callable[[], None]) -> None:
    log = Path("log")
    for number in range(3):
        pause()
        with log.open("a") as file:
            file.write(f"{number}")


def test_a_loop_advances_one_batch_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Loop(three_batches) as step:
        for expected in ("0", "01"):
            step()
            assert Path("log").read_text() == expected
        step()
        with pytest.raises(RuntimeError, match="three_batches ended, exit code 0"):
            step()
