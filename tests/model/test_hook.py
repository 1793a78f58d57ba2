"""`import cook`: quick, without torch, and transformers knows cook whichever comes first."""

import os
import subprocess
import sys

import pytest

PROLOGUE = "import sys, time\nsys.path.insert(0, sys.argv[1])\n"
KNOWN = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING
assert AUTO_QUANTIZER_MAPPING["cook"].__name__ == "CookQuantizer"
assert AUTO_QUANTIZATION_CONFIG_MAPPING["cook"].__name__ == "CookConfig"
"""
LIGHT = """
import os, importlib.util
start = time.perf_counter()
import cook
cost = time.perf_counter() - start
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
assert cost < 0.1, cost
"""
WHOLE = """
module = sys.modules["transformers.quantizers.auto"]
assert type(module.__loader__).__name__ == type(module.__spec__.loader).__name__ == "SourceFileLoader"
import inspect, importlib
assert "AUTO_QUANTIZER_MAPPING" in inspect.getsource(module)
from cook import _hook
finders = len(sys.meta_path)
_hook.install()
assert len(sys.meta_path) == finders
importlib.reload(module)
"""
ORDERS = {
    "cook first": LIGHT + KNOWN + WHOLE + KNOWN,
    "transformers first": "import transformers.quantizers.auto\nimport cook\n" + KNOWN + WHOLE + KNOWN,
    "quantizer first": "import cook.model.quantizer\n" + KNOWN,
    "threads": """
import threading
import cook
failures = []
def load(name):
    try:
        __import__(name)
    except BaseException as failure:
        failures.append(failure)
names = ["transformers.quantizers.auto", "cook.model.quantizer", "cook.model.blueprint", "transformers.modeling_utils"]
threads = [threading.Thread(target=load, args=(name,)) for name in names]
[each.start() for each in threads]
[each.join() for each in threads]
assert not failures, failures
"""
    + KNOWN,
}


@pytest.mark.parametrize("order", ORDERS)
def test_transformers_learns_of_cook(order):
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + ORDERS[order], os.getcwd()],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
