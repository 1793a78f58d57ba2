"""`import cook`: light, with its public names looked up when asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import cook
from cook.errors import CookError
from cook.report import Report

ROOT = Path(cook.__file__).parents[1]


def test_import_is_light() -> None:
    code = "import sys, cook; assert not {'torch', 'transformers', 'numpy', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names() -> None:
    assert cook.CookError is CookError
    assert cook.Report is Report
    assert {"apply", "attach", "run", "load_recipe", "Recipe", "Report", "CookError"} <= set(cook.__all__)
    assert set(cook.__all__) <= set(dir(cook))


@pytest.mark.parametrize("name", ["apply", "attach", "run", "load_recipe"])
def test_no_module_hides_a_function(name: str) -> None:
    assert find_spec(f"cook.{name}") is None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cook' has no attribute 'cok'"):
        cook.cok  # noqa: B018
