"""Keeps freed memory in the process during timing.

glibc returns the top of its heap to the system whenever enough of it is free. Whether that happens after
each forward depends on other allocations, and a forward that has to allocate its memory again takes up to
a quarter longer (a BERT of width 384, 32 x 64 tokens). Timings of models of different sizes then vary.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Constants of glibc's malloc.h."""
_LARGEST = 32 * 2**20
"""The maximum of the size above which glibc maps blocks individually, as reached by its own adjustment."""


def kept() -> AbstractContextManager[None]:
    """Keep freed memory in the process for reuse in the context."""
    return _with({_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2**31 - 1})


@contextmanager
def _with(settings: Mapping[int, int]) -> Iterator[None]:
    """Set glibc malloc options in the context.

    Afterwards they are as glibc's own adjustment sets them after freeing a block of 32 MB, and free memory
    is returned. Without glibc (macOS, Windows, musl, another allocator) nothing changes.
    """
    library = _glibc()
    if library is None:
        yield
        return
    for number, value in settings.items():
        library.mallopt(number, value)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
