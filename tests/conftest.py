"""Settings that every test needs: one thread a test process, no network, no colour. And what tests share."""

import os
from collections.abc import Iterator

import pytest

from tests.strangers import Strangers

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_COLOR", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_itemcollected(item: pytest.Item) -> None:
    """One process takes all tests of a file, for they share fixtures, but those that name their own group."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.fixture(scope="session")
def _strangers() -> Iterator[Strangers]:
    with Strangers() as strangers:
        yield strangers


@pytest.fixture(scope="module")
def strangers(_strangers: Strangers) -> Iterator[Strangers]:
    """A saved folder is loaded back by a fork, which starts at once: for tests that are not about that."""
    from cook.model import verify

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "_start", _strangers.start)
        yield _strangers
