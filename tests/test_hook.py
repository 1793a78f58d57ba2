"""`import cook`: quick, without torch, and transformers knows cook whichever comes first."""

import os
import subprocess
import sys

import pytest
from transformers.quantizers import auto

from cook import _hook

PROLOGUE = "import sys, time\nsys.path.insert(0, sys.argv[1])\n"
KNOWN = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoQuantizationConfig, AutoHfQuantizer
config = AutoQuantizationConfig.from_dict({"quant_method": "cook", "blueprint": {"version": 1, "edits": []}})
assert type(config).__name__ == "CookConfig"
assert type(AutoHfQuantizer.from_config(config)).__name__ == "CookQuantizer"
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
found = importlib.util.find_spec("transformers.quantizers.auto")
assert found.loader.is_package("transformers.quantizers.auto") is False
importlib.reload(module)
"""
THREADS = """
import threading
import cook
sys.setswitchinterval(1e-5)
failures = []
def load(name):
    try:
        __import__(name)
    except BaseException as failure:
        failures.append(failure)
# The package, not its module `auto`: two threads that import two of transformers' quantizer modules by
# name can deadlock without cook too, each holding its own module while it waits for the package.
names = ["transformers.quantizers", "cook.model.hub.quantizer", "transformers.modeling_utils"]
threads = [threading.Thread(target=load, args=(name,)) for name in names]
[each.start() for each in threads]
[each.join() for each in threads]
assert not failures, failures
"""
ORDERS = {"cook first": LIGHT + KNOWN + WHOLE + KNOWN, "threads": THREADS + KNOWN}


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


def test_install_again_and_after_transformers(monkeypatch):
    monkeypatch.setattr(
        sys, "meta_path", [each for each in sys.meta_path if not isinstance(each, _hook._Finder)]
    )
    monkeypatch.setattr(auto, "AUTO_QUANTIZER_MAPPING", {})
    for _ in range(2):
        _hook.install()
        assert list(auto.AUTO_QUANTIZER_MAPPING) == ["cook"]
    assert sum(isinstance(each, _hook._Finder) for each in sys.meta_path) == 1
