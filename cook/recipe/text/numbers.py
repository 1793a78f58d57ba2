"""Which number was meant by a text or a number that does not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

Fits = Callable[[float], bool]
"""Whether a number is permitted where the value stands."""

_SLIPS = (
    (r"(?<=[0-9.])\s*-\s*[eE]\s*[-+]?(?=[0-9])", "e-"),  # 1-e4
    (r"(?<=[0-9.])\s*[eE]\s*-\s*(?=[0-9])", "e-"),  # 1e - 4
    (r"\A([-+]?)10\s*(?:\^|\*\*)\s*(-?[0-9]+)\Z", r"\g<1>1e\2"),  # 10^-4
    (r"(?<=[0-9.])[fFdD]\Z", ""),  # 1e-4f, as in C
)


def meant(text: str, fits: Fits) -> str | None:
    """A hint that writes the number in a text as a recipe has it; None when there is none that fits.

    >>> meant("1-e4", lambda number: number < 1)
    'write 1e-4'
    """
    for word in _readings(text):
        number = float(word)
        if fits(int(number) if number.is_integer() else number):
            return f"write {word}, without quotes" if word == text.strip() else f"write {word}"
    return None


def as_share(number: float, fits: Fits) -> str | None:
    """A hint that writes per cent as a share; None when that does not fit either.

    >>> as_share(80, lambda number: 0 <= number < 1)
    'write 0.8'
    """
    share = number / 100
    return f"write {share:g}" if 5 <= number <= 100 and fits(share) else None


def _readings(text: str) -> Iterator[str]:
    """The numbers that a text may stand for, the likeliest first, each as Python and YAML read it."""
    bare = text.strip().replace("_", "").replace("\u2212", "-")
    for slip, right in _SLIPS:
        bare = re.sub(slip, right, bare)
    percent = bare.endswith("%")
    bare = bare.removesuffix("%").strip()
    if re.fullmatch(r"[-+]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]*)?", bare):  # 1,000
        bare = bare.replace(",", "")
    elif bare.count(",") == 1:  # 0,8
        bare = bare.replace(",", ".")
    if not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", bare):
        return
    number = float(bare)
    if not math.isfinite(number):
        return
    if not percent:
        yield bare
    yield f"{number / 100:g}"
