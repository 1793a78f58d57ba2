"""Two small passes, so that the recipes tested here do not depend on the shipped methods."""

from dataclasses import dataclass
from typing import Literal

import pytest

from cook import passes
from cook.options import REQUIRED, Window, option
from cook.passes import Pass


@dataclass(frozen=True, kw_only=True)
class ShrinkOptions(Window):
    sparsity: float = option(REQUIRED, "share of zeros", minimum=0, below=1)
    schedule: Literal["cubic", "linear"] = option("cubic", "how it rises")
    rounds: int = option(4, "how often", minimum=1)
    include: tuple[str, ...] = option(("*",), "which", min_items=1)


class Shrink(Pass):
    name, summary, phase = "test.shrink", "zero some weights", "weights"
    Options = ShrinkOptions
    needs = frozenset({"weights"})

    def check(self) -> None:
        if self.options.schedule == "linear" and self.options.rounds == 13:
            raise self.error("13 rounds cannot be linear", option="rounds", hint="write 12")


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    temperature: float = option(1.0, "softness", above=0)


class Listen(Pass):
    name, summary = "test.listen", "learn from a teacher"
    Options = ListenOptions
    needs = frozenset({"training", "teacher"})


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Only the two passes above are known."""
    monkeypatch.setattr(passes, "BUILT_IN", {})
    monkeypatch.setattr(passes, "_of_other_packages", lambda: ())
    monkeypatch.setattr(passes, "_registry", {cls.name: cls for cls in (Shrink, Listen)})
