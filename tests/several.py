"""Runs of several processes, as torchrun starts them, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def two(module: str, *args: str, **environment: str) -> str:
    """What two processes of `python -m module` print; they must end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", module, *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
