"""Two small passes, so that the recipes tested here do not depend on the shipped methods."""

from typing import ClassVar

import pytest

from cook import passes
from cook.passes import WINDOW, Pass


class Shrink(Pass):
    name, summary, phase = "test.shrink", "zero some weights", "weights"
    options: ClassVar = {
        **WINDOW,
        "sparsity": {
            "type": "number",
            "minimum": 0,
            "exclusiveMaximum": 1,
            "description": "share of zeros",
        },
        "schedule": {"enum": ["cubic", "linear"], "default": "cubic", "description": "how it rises"},
        "rounds": {"type": "integer", "minimum": 1, "default": 4, "description": "how often"},
        "include": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "default": ["*"],
            "description": "which",
        },
    }
    required = ("sparsity",)
    needs = frozenset({"weights"})

    def check(self) -> None:
        if self.given["schedule"] == "linear" and self.given["rounds"] == 13:
            raise self.error("13 rounds cannot be linear", option="rounds", hint="write 12")


class Listen(Pass):
    name, summary = "test.listen", "learn from a teacher"
    options: ClassVar = {
        "temperature": {
            "type": "number",
            "exclusiveMinimum": 0,
            "default": 1.0,
            "description": "softness",
        }
    }
    needs = frozenset({"training", "teacher"})


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Only the two passes above are known."""
    monkeypatch.setattr(passes, "BUILT_IN", {})
    monkeypatch.setattr(passes, "_of_other_packages", lambda: ())
    monkeypatch.setattr(passes, "_registry", {cls.name: cls for cls in (Shrink, Listen)})
