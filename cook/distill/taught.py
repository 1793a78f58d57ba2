"""What all passes that learn from a teacher have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cook.distill.specs import TaughtSpec
from cook.passes import Pass

if TYPE_CHECKING:
    from cook.session import Session


class Taught(TaughtSpec, Pass):
    """A pass that adds a loss to learn from a teacher, and leaves the model as large as it was."""

    def attach(self, session: Session) -> None:
        if self.window.start == self.window.end:
            raise self.error(
                f"begins and ends at step {self.window.start} of {session.total_steps}: nothing is learned",
                option="end",
                hint="give it a longer window, or the run more steps",
            )

    def task_weight(self) -> float:
        return float(self.given["task_weight"])

    def settled(self, done: int) -> bool:
        """At any time: the model is no larger while it learns from a teacher."""
        return True
