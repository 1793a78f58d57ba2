"""Memory that a process keeps while something is timed in it.

glibc gives the top of its heap back to the system whenever enough of it is free. Whether that is so after
each forward depends on what else happens to lie there, and a forward that must fetch its memory anew takes
up to a quarter longer (a BERT of width 384, 32 x 64 tokens). Two models of other sizes then differ by luck.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The numbers of glibc's malloc.h."""
_LARGEST = 32 * 2**20
"""From which size on glibc maps a block by itself, at most: what its own adjustment ends at."""


def kept() -> AbstractContextManager[None]:
    """Freed memory stays with the process inside, for what comes next."""
    return _with({_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2**31 - 1})


@contextmanager
def _with(settings: Mapping[int, int]) -> Iterator[None]:
    """glibc with settings inside.

    Afterwards it is as its own adjustment leaves it when a block of 32 MB was freed, and what is free is
    given back. Where there is no glibc (macOS, Windows, musl, another allocator) nothing changes.
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
