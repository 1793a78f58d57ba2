"""What all passes that learn from a teacher have in common."""

from __future__ import annotations

from typing import Any

from cook.passes import WINDOW, Pass

WEIGHT: dict[str, Any] = {"type": "number", "minimum": 0, "default": 1.0}
LESSON: dict[str, Any] = {
    "weight": {**WEIGHT, "description": "weight of this loss"},
    "task_weight": {**WEIGHT, "description": "weight of the task's own loss while this pass acts"},
    **WINDOW,
}
"""The options that each has."""


class Taught(Pass):
    """A pass that adds a loss to learn from a teacher, and leaves the model as large as it was."""

    phase = "observe"
    needs = frozenset({"training", "teacher"})

    def task_weight(self) -> float:
        return float(self.given["task_weight"])

    def settled(self, done: int) -> bool:
        """At any time: the model is no larger while it learns from a teacher."""
        return True
