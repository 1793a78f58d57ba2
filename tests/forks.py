"""Runs of the command `cook`, each in a process of its own, that meet their fault at a chosen moment.

Importing torch and transformers takes seconds. One process does it once, and forks a `cook` for each
order that it reads: JSON lines in, JSON lines out.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

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


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, negative for a signal, and all that it printed."""

    code: int
    output: str


class Forks:
    """`with Forks() as forks: forks.cook("run", "recipe.yaml")`."""

    def __enter__(self) -> Forks:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def cook(self, *argv: str | Path, fault: Fault | None = None) -> Done:
        """Run the command with these arguments and wait for its end."""
        order = {"argv": list(map(str, argv)), "fault": asdict(fault) if fault else None}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return Done(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    # What a run needs, so that no fork imports it again.
    for name in ("cook.api", "cook.cli.run", "transformers.models.bert.modeling_bert"):
        import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reader)
            for descriptor in (1, 2):
                os.dup2(writer, descriptor)
            os.close(writer)
            # New objects: the inherited ones have looked at what the descriptors were before.
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            os._exit(_call(**order))
        os.close(writer)
        with os.fdopen(reader, errors="replace") as pipe:
            output = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"code": code, "output": output}), flush=True)


def _call(argv: list[str], fault: dict[str, Any] | None) -> int:
    from cook.cli import main

    if fault is not None:
        _arm(**fault)
    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


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
    _serve()
