"""A run that is killed again and again, at random steps and inside of saves, ends in the same bits.

    python -m benchmarks.faults --kills 50

Half of the kills strike at a step and half inside a save, by turns; as many fall on one run as it takes
to end. The seed of each run is printed: `tests/test_faults.py` does the same with three of each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from tests.helpers.forks import Forks
from tests.test_faults import Bench, killed, kills

A_RUN = 6
"""Kills that one run has to bear."""


def main() -> None:
    """Kill, resume and compare, and print a line a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=50, help="of each kind (default: %(default)s)")
    count = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as root:
        os.environ["COOK_CACHE"] = str(Path(root) / "cache")
        with Forks() as forks:
            bench = Bench(Path(root), forks)
            assert bench.run("whole").code == 0
            struck = {"step": 0, "fsync": 0}
            seed = 0
            while min(struck.values()) < count:
                seed += 1
                name = f"killed-{seed}"
                for fault in killed(bench, name, kills(seed, A_RUN // 2)):
                    struck[fault.moment] += 1
                bench.same(name, "whole")
                told = f"{struck['step']} kills at steps, {struck['fsync']} in saves"
                print(f"seed {seed}: equal to the bit; so far {told}", flush=True)


if __name__ == "__main__":
    main()
