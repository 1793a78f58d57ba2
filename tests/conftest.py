"""Settings that every test needs: one thread a test process, no network, no colour. And what tests share."""

import os
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import pytest

from tests.helpers.clean_process import Strangers

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_COLOR", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # test processes are told the width of somebody's terminal

DEALT, SHARDS = {"tests/test_pass_matrix.py"}, 6
"""Files whose cases are dealt out to as many test processes."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process takes all tests of a file, which share fixtures; of a file that is dealt out, of a case."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            _, _, case = test.partition("[")
            return f"{file} {crc32(case.encode()) % SHARDS}" if file in DEALT else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def _strangers() -> Iterator[Strangers]:
    with Strangers() as clean_processes:
        yield clean_processes


@pytest.fixture(scope="module")
def clean_processes(_strangers: Strangers) -> Iterator[Strangers]:
    """A saved folder is loaded back by a fork, which starts at once: for tests that are not about that."""
    from cook.model.hub import verify

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "_start", _strangers.start)
        yield _strangers
