"""Runs of the command `cook`, each in a process of its own, that meet their fault at a chosen moment."""

from __future__ import annotations

import itertools
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.helpers.clean_process import Strangers
from tests.helpers.server import Done, Server, serve

FULL = 2000
"""Bytes after which a file can grow no more: the disk as good as full."""


@dataclass(frozen=True)
class Fault:
    """What happens, and when.

    Args:
        what: `kill`, `term` or `int` for a signal; `full` for a disk that takes no more.
        number: of the moment, counted from 1 in this process.
        moment: `step` for the end of an optimizer step, `fsync` for a write that is being forced to the disk.
    """

    what: str
    number: int
    moment: str = "step"


class Forks(Server):
    """`with Forks() as forks: forks.cook("run", "recipe.yaml")`."""

    def __init__(self) -> None:
        super().__init__("tests.helpers.forks")

    def cook(self, *argv: str | Path, fault: Fault | None = None) -> Done:
        """Run the command with these arguments and wait for its end."""
        return self.order(argv=list(map(str, argv)), fault=asdict(fault) if fault else None)


def _call(argv: list[str], fault: dict[str, Any] | None) -> int:
    from cook.cli import main

    if fault is not None:
        _arm(**fault)
    return main(argv)


def _arm(what: str, number: int, moment: str) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    count = itertools.count(1)
    strike = _deed(what)

    def passing(*_: Any) -> None:
        if next(count) == number:
            strike()

    if moment == "step":
        register_optimizer_step_post_hook(passing)
        return
    force = os.fsync

    def fsync(fd: Any) -> None:
        passing()
        force(fd)

    os.fsync = fsync


def _deed(what: str) -> Callable[[], None]:
    if what == "full":
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, most))
    number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[what]
    return lambda: os.kill(os.getpid(), number)


if __name__ == "__main__":
    # What a run needs, so that no fork imports it again.
    for name in ("cook.api", "cook.cli.run", "transformers.models.bert.modeling_bert"):
        import_module(name)
    from cook.model.hub import verify

    with Strangers() as clean_processes:
        verify._start = clean_processes.start
        serve(_call)
