"""What counts as missing in data: None, NaN, and texts of nothing but whitespace."""

from __future__ import annotations

import re
from typing import Any

_INVISIBLE = "\\s\u200b\u200c\u200d\u2060\ufeff"
_AROUND = re.compile(f"^[{_INVISIBLE}]+|[{_INVISIBLE}]+$")


def stripped(text: str) -> str:
    """`text` without whitespace (and characters without width) around it."""
    return _AROUND.sub("", text)


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, or a text without a visible character."""
    if isinstance(value, str):
        return not stripped(value)
    return value is None or (isinstance(value, float) and value != value)
