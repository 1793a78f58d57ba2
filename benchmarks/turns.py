"""Whole training loops that advance one step at a call.

A step of somebody else's loop cannot be cut out of it without leaving behind what the loop does around
it. So each loop runs as it is, in a process of its own, and stops for its turn wherever it makes a batch.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType


class Loop:
    """A loop as a callable: each call runs it from one batch to the next.

    >>> with Loop(train) as step:  # def train(pause): for batch in batches: pause(); ...
    ...     step()

    Args:
        run: called with `pause`, which it must call once for each batch that it makes. It lives at the top
            of a module, or is a `partial` of what does, since the other process imports it by name.
    """

    def __init__(self, run: Callable[[Callable[[], None]], object]):
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._name = getattr(run, "__qualname__", str(run))
        self._process = context.Process(target=_child, args=(run, there), daemon=True)
        self._process.start()
        there.close()  # or the end of the child would not be seen as the end of the pipe

    def __call__(self) -> None:
        """Let the loop run until it makes its next batch.

        Raises:
            RuntimeError: when it ends or fails instead.
        """
        try:
            self._here.recv()  # it waits at a batch
            self._here.send(None)
            self._here.poll(None)  # and here at the next one
        except (EOFError, OSError) as error:
            self._process.join()
            raise RuntimeError(f"{self._name} ended, exit code {self._process.exitcode}") from error

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it has nothing to tidy, and would take SIGTERM for a wish to save
        self._process.join()
        self._here.close()


def _child(run: Callable[[Callable[[], None]], object], there: Connection) -> None:
    def pause() -> None:
        there.send(None)
        there.recv()

    run(pause)
