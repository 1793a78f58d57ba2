"""The bar that a run draws while it trains."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm

LOG_SECONDS = 30.0
"""Between two drawings where nobody watches: a log keeps each one."""
LATE_SECONDS = 5.0
"""After which an evaluation has a bar: shorter ones need none."""

FORMAT = "{desc}{n_fmt}/{total_fmt} {unit} {bar} {elapsed}<{remaining}{postfix}"
"""The bar itself gives way, so that the facts behind it fit 80 columns; tqdm's own tells the rate as well."""


def bar(
    total: int, done: int = 0, *, shown: bool = True, unit: str = "steps", passing: str = ""
) -> tqdm[NoReturn]:
    """A bar of `total` steps on stderr, `done` of them made; drawn seldom when stderr is no terminal.

    Args:
        passing: what goes on, for something that may be short: the bar appears after LATE_SECONDS and goes
            when it is done.
    """
    apart = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    # tqdm draws at the latest after `maxinterval`, whatever `mininterval` says.
    return tqdm(
        total=total,
        initial=done,
        desc=f"{passing}: " if passing else None,
        delay=LATE_SECONDS if passing else 0.0,
        leave=not passing,
        disable=not shown,
        unit=unit,
        dynamic_ncols=True,
        bar_format=FORMAT,
        mininterval=apart,
        maxinterval=max(apart, 10.0),
    )
