"""What was freed is fetched anew or not: seen by the page faults of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource
from contextlib import nullcontext
from cook.model.probe.memory import kept

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
SIZE = 24 * 2**20

def faults(turns):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        block = ctypes.c_void_p(libc.malloc(SIZE))
        ctypes.memset(block, 1, SIZE)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with kept():
    faults(1)
    print(faults(4))
libc.mallopt(-1, 2**20)  # as a process may be: what is free is given back
print(faults(4))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator of glibc")
def test_memory_is_kept_inside_only():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    inside, outside = map(int, done.stdout.split())
    pages = 4 * 24 * 2**20 // 4096
    assert inside < pages / 100
    assert outside > pages / 2
