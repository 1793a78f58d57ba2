"""Lines for people: what prints them, and what drops them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Say: TypeAlias = Callable[[str], None]
"""Takes one line."""


def silent(line: str) -> None:
    """Drop the line."""
