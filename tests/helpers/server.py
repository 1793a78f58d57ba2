"""A process that imports once what takes seconds, and forks for each order: JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

S = TypeVar("S", bound="Server")


@dataclass(frozen=True)
class Done:
    """How an order ended: the exit code of its fork, negative for a signal, and all that it printed."""

    code: int
    output: str


class Server:
    """`with Server("tests.helpers.forks") as server: server.order(argv=[...])`.

    Args:
        module: run as a program, it ends in `serve`.
        environment: variables beside those of this process.
    """

    def __init__(self, module: str, **environment: str):
        self.module, self.environment = module, environment

    def __enter__(self: S) -> S:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **self.environment},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def order(self, **order: Any) -> Done:
        """Have a fork do this, and wait for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"{self.module} is dead"
        return Done(**json.loads(answer))


def serve(call: Callable[..., int]) -> None:
    """Fork for each order, and call this with it there; what it returns is the exit code."""
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
            code = _ended(call, order)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        os.close(writer)
        with os.fdopen(reader, errors="replace") as pipe:
            output = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"code": code, "output": output}), flush=True)


def _ended(call: Callable[..., int], order: dict[str, Any]) -> int:
    """The exit code, with what Python prints at such an end."""
    try:
        return call(**order)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
