"""Numbers as people read them: 11.3 M, 45.2 MB, 89.1 %, 3.7x smaller. Decimal units throughout."""

from __future__ import annotations

import math
from collections.abc import Callable

NOTHING = "-"
"""What stands for a number that was not measured."""

COUNT_UNITS = ("", "k", "M", "G", "T", "P")
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
SHARES = ("accuracy", "f1", "precision", "recall", "exact_match")
"""Metrics that are shares of one and are drawn in percent; the others are drawn as they are."""

Number = int | float | None


def count(value: Number) -> str:
    """How many of something, to three figures: `count(11_312_000)` is "11.3 M"."""
    return _join(_scaled(value, COUNT_UNITS))


def size(value: Number) -> str:
    """Bytes to three figures: `size(45_200_000)` is "45.2 MB"."""
    return _join(_scaled(value, BYTE_UNITS))


def percent(value: Number) -> str:
    """A share of one: `percent(0.891)` is "89.1 %"."""
    return _join(_share(value, 1))


def milliseconds(value: Number) -> str:
    """A time in ms, to three figures: "3.21 ms"."""
    return NOTHING if value is None else f"{_three(value)} ms"


def duration(seconds: Number) -> str:
    """A wall-clock time: "42 s", "3 min 12 s", "2 h 05 min"."""
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def several(number: int | float, one: str) -> str:
    """A number of things: "1 epoch", "2.5 epochs"."""
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{text} {one}" + ("" if number == 1 else "s")


def change(draw: Callable[[Number], str], value: Number) -> str:
    """A signed amount: `change(size, -1_180_000)` is "-1.18 MB"."""
    if value is None:
        return NOTHING
    return draw(0) if not value else f"{'-' if value < 0 else '+'}{draw(abs(value))}"


def decimal(value: float) -> str:
    """A number to four figures, never with an exponent: "22,220", "0.3283"."""
    if not math.isfinite(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 4 if not value else max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 10)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def is_share(name: str) -> bool:
    """Whether the metric called `name` is a share of one."""
    return name.startswith(SHARES)


def metric(name: str, value: Number) -> str:
    """A metric: shares to a hundredth of a percent ("89.10 %"), others to four figures."""
    return _join(_share(value, 2)) if is_share(name) else _plain(value)


def metric_change(name: str, before: Number, after: Number) -> str:
    """The signed difference: in percentage points for shares ("-1.20"), else as it is."""
    if before is None or after is None:
        return ""
    text = f"{100 * (after - before):+.2f}" if is_share(name) else f"{after - before:+.4g}"
    return text if float(text) else "0"


def size_pair(before: Number, after: Number) -> str:
    """Two sizes: "45.2 → 12.1 MB"."""
    return _pair(_scaled(before, BYTE_UNITS), _scaled(after, BYTE_UNITS))


def percent_pair(before: Number, after: Number) -> str:
    """Two shares: "0.0 → 60.1 %"."""
    return _pair(_share(before, 1), _share(after, 1))


def metric_pair(name: str, before: Number, after: Number) -> str:
    """A metric before and after, with the signed change: "96.40 → 95.20 % (-1.20)"."""
    if is_share(name):
        text = _pair(_share(before, 2), _share(after, 2))
    else:
        text = _pair((_plain(before), ""), (_plain(after), ""))
    change = metric_change(name, before, after)
    return f"{text} ({change})" if change else text


def times(before: Number, after: Number, less: str, more: str) -> str:
    """How many times less or more: `times(45.2, 12.1, "smaller", "larger")` is "3.74x smaller"."""
    if not before or not after or before < 0 or after < 0:
        return ""
    if before >= after:
        factor, word = before / after, less
    else:
        factor, word = after / before, more
    return "same" if factor < 1.005 else f"{_three(factor)}x {word}"


def _three(value: float) -> str:
    """`value` to three figures without an exponent, never fewer than its whole part."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def _scaled(value: Number, units: tuple[str, ...]) -> tuple[str, str]:
    if value is None:
        return NOTHING, ""
    if abs(value) < 1000:
        return f"{value:.0f}", units[0]
    power = 1
    while power < len(units) - 1 and abs(float(_three(value / 1000**power))) >= 1000:
        power += 1
    return _three(value / 1000**power), units[power]


def _share(value: Number, digits: int) -> tuple[str, str]:
    return (NOTHING, "") if value is None else (f"{100 * value:.{digits}f}", "%")


def _plain(value: Number) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def _join(parts: tuple[str, str]) -> str:
    return " ".join(parts).rstrip()


def _pair(before: tuple[str, str], after: tuple[str, str]) -> str:
    if before[0] == after[0] == NOTHING:
        return NOTHING
    first = before[0] if before[1] == after[1] else _join(before)
    return f"{first} → {_join(after)}"
