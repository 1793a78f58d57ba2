"""What all passes that learn from a teacher have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cook.distill.specs import DistillationSpec
from cook.passes import Pass

if TYPE_CHECKING:
    from cook.context import Context


def decimal(value: float) -> str:
    """A number in plain decimals: "0.5", "0.00001"."""
    return f"{value:.8f}".rstrip("0").rstrip(".")


class DistillationPass(DistillationSpec, Pass):
    """A pass that adds a loss to learn from a teacher, and leaves the model as large as it was."""

    def attach(self, context: Context) -> None:
        if self.window.start == self.window.end:
            raise self.error(
                f"begins and ends at step {self.window.start} of {context.total_steps}: nothing is learned",
                option="end",
                hint="give it a longer window, or the run more steps",
            )

    def task_weight(self) -> float:
        return float(self.options.task_weight)

    def facts(self, context: Context) -> dict[str, Any]:
        first, last = self.window.start, max(self.window.start, self.window.end - 1)
        weight, task = decimal(self.options.weight), decimal(self.options.task_weight)
        return {
            "note": f"learned from the teacher in steps {first:,} to {last:,}, loss weight {weight}, task"
            f" loss weight {task}"
        }

    def settled(self, done: int) -> bool:
        """At any time: the model is no larger while it learns from a teacher."""
        return True
