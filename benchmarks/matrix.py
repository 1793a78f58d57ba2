"""The shared test over all examples, all ordered pairs of passes and all families.

`make test` pairs each pass with a representative of every phase only (`tests/helpers/pass_cases.py`).

python -m benchmarks.matrix            what follows goes to pytest: -k vit
"""

from __future__ import annotations

import os
import sys

import pytest

if __name__ == "__main__":
    os.environ["COOK_WHOLE_MATRIX"] = "1"
    sys.exit(pytest.main(["tests/test_pass_matrix.py", "-q", *sys.argv[1:]]))
