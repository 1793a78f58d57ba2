"""Side-by-side timing that a noisy machine cannot fool.

Rivals take turns (A B C A B C ...), so that a slow minute hits all of them; each round gives one ratio, and
the median of the ratios comes with its bootstrap interval. A control, one rival timed against its twin,
shows what the method reads when there is nothing to be read: an interval around 1.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

ROUNDS = 60


@dataclass(frozen=True)
class Ratio:
    """How many times as long as another one takes: the middle over `pairs`, its 95 % interval.

    Attributes:
        spread: the interquartile range of the single ratios: the noise of the machine.
    """

    middle: float
    low: float
    high: float
    spread: float
    pairs: int

    def within(self, bar: float) -> bool:
        """Whether the measurement agrees with a true ratio of at most `bar`."""
        return self.low <= bar

    def __str__(self) -> str:
        interval = f"[{self.low:.3f}, {self.high:.3f}]"
        return f"{self.middle:.3f} {interval}, spread {self.spread:.3f}, {self.pairs} pairs"


def measure(
    rivals: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    warm_up: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call of every rival, `rounds` of each, taken in turns after `warm_up` rounds.

    A callable must have done its work when it returns: on a GPU, synchronise in it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(warm_up + rounds):
        for name, call in rivals.items():
            start = clock()
            call()
            if turn >= warm_up:
                seconds[name].append(clock() - start)
    return seconds


def ratio(
    seconds: Sequence[float],
    against: Sequence[float],
    *,
    mean: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
) -> Ratio:
    """The ratio of two rivals of one `measure`, round by round.

    The interval is the percentile bootstrap (Efron 1979) over whole rounds.

    Args:
        mean: tell the ratio of the two sums instead of the median ratio, for a rival whose rare rounds are
            dear and belong to its cost.
    """
    mine, theirs = numpy.asarray(seconds), numpy.asarray(against)
    ratios = mine / theirs
    rounds = numpy.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    if mean:
        middle, drawn = mine.sum() / theirs.sum(), mine[rounds].sum(1) / theirs[rounds].sum(1)
    else:
        middle, drawn = numpy.median(ratios), numpy.median(ratios[rounds], axis=1)
    low, high = numpy.percentile(drawn, [2.5, 97.5])
    first, third = numpy.percentile(ratios, [25, 75])
    return Ratio(float(middle), float(low), float(high), float(third - first), len(ratios))


def table(seconds: Mapping[str, Sequence[float]]) -> str:
    """A markdown table: the median milliseconds of each rival and the middle half of them."""
    rows = ["| | ms | middle half |", "|---|---|---|"]
    for name, times in seconds.items():
        first, median, third = numpy.percentile(numpy.asarray(times) * 1e3, [25, 50, 75])
        rows.append(f"| {name} | {median:.2f} | {first:.2f} - {third:.2f} |")
    return "\n".join(rows)


def machine() -> str:
    """One line on where the figures come from: processor, cores, threads, device, versions."""
    processor = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        models = [line for line in described.read_text().splitlines() if line.startswith("model name")]
        processor = models[0].split(":", 1)[1].strip() if models else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{processor}, {cores} cores, {torch.get_num_threads()} threads, {device}, {versions}"
