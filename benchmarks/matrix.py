"""The shared test over every ordered pair of passes and every family; `make test` takes one in rotation.

python -m benchmarks.matrix            what follows goes to pytest: -k vit
"""

from __future__ import annotations

import os
import sys

import pytest

if __name__ == "__main__":
    os.environ["COOK_WHOLE_MATRIX"] = "1"
    sys.exit(pytest.main(["tests/test_every_pass.py", "-q", *sys.argv[1:]]))
