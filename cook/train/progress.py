"""The bar that a run draws while it trains."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm

LOG_SECONDS = 30.0
"""Between two drawings where nobody watches: a log keeps each one."""


FORMAT = "{n_fmt}/{total_fmt} {unit}s {bar} {elapsed}<{remaining}{postfix}"
"""The bar itself gives way, so that the facts behind it fit 80 columns; tqdm's own tells the rate as well."""


def bar(total: int, done: int = 0, *, shown: bool = True, unit: str = "step") -> tqdm[NoReturn]:
    """A bar of `total` steps on stderr, `done` of them made; drawn seldom when stderr is no terminal."""
    apart = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    # tqdm draws at the latest after `maxinterval`, whatever `mininterval` says.
    return tqdm(
        total=total,
        initial=done,
        disable=not shown,
        unit=unit,
        dynamic_ncols=True,
        bar_format=FORMAT,
        mininterval=apart,
        maxinterval=max(apart, 10.0),
    )
