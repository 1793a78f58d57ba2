"""Runs of several processes on the CPU: as torchrun starts them, or as forks of one that knows torch."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

from tests.helpers.server import Server, serve

PROCESSES = 2


def torchrun(module: str, *args: str, **environment: str) -> str:
    """What two processes of `python -m module` print; they must end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES)]
    done = subprocess.run(
        [*command, "--standalone", "-m", module, *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def two(module: str, *args: str, **environment: str) -> str:
    """The same in a fraction of the time: told what torchrun tells, and spared the imports."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = _server().order(module=module, argv=args, environment=environment, port=port)
    assert done.code == 0, done.output
    return done.output


@cache
def _server() -> Server:
    """Ends with this process."""
    return Server("tests.helpers.processes", CUDA_VISIBLE_DEVICES="").__enter__()


def _call(module: str, argv: list[str], environment: dict[str, str], port: int) -> int:
    """Fork the processes; when one fails, the others, who might wait for it, are ended."""
    os.environ.update(environment)
    alive = set()
    for rank in range(PROCESSES):
        if (child := os.fork()) == 0:
            _be(rank, port)
            sys.argv = [module, *argv]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            return 0
        alive.add(child)
    failed = 0
    while alive:
        child, status = os.wait()
        alive.remove(child)
        if status and not failed:
            failed = 1
            for other in alive:
                os.kill(other, signal.SIGKILL)
    return failed


def _be(rank: int, port: int) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**ranks, **place}.items()})


if __name__ == "__main__":
    for name in ("cook.api", "torch.distributed", "tests.helpers.bound", "tests.helpers.families"):
        import_module(name)
    serve(_call)
