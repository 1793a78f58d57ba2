"""Checks that a custom training loop makes the calls that a session needs."""

from __future__ import annotations

from dataclasses import dataclass

from cook.errors import CookError
from cook.model.nn.masks import Masks

LOOKED_AT = 3
"""Steps with masks whose weights are looked at; later ones cost nothing, and `finish` looks again."""


@dataclass
class Steps:
    """What was called since the last step.

    Attributes:
        begun: whether `before_step` was called.
        applied: whether a bound optimizer made a step and applied the masks.
        bound: whether an optimizer is bound.
        checked: steps whose weights were looked at.
        learned: whether a loss was computed with gradients.
        moved: whether `before_step` was ever called.
        ended: whether `after_step` was ever called.
    """

    begun: bool = False
    applied: bool = False
    bound: bool = False
    checked: int = 0
    learned: bool = False
    moved: bool = False
    ended: bool = False

    def begin(self) -> None:
        """At the start of a step."""
        self.begun = self.moved = True

    def check_all(self, masks: Masks) -> None:
        """At the end: that the masks hold, and that a loop that computed losses began and ended its steps.

        Raises:
            CookError: with the call that is missing.
        """
        self.check_held(masks, applied=self.bound)
        if self.learned and not self.moved:
            raise CookError(
                "session.before_step() was never called: no schedule moved",
                hint="call session.before_step(step) at the start of each step, counted from 0",
            )
        # A bound optimizer that made no step at all, as with gradients that overflow, has no step to end.
        if self.learned and not self.ended and (self.applied or not self.bound):
            raise CookError(
                "session.after_step() was never called: no pass knows that a step was made",
                hint="call session.after_step() after each step of the optimizer",
            )

    def check(self, masks: Masks) -> None:
        """After a step: that it began with `before_step`, and that the masks were applied.

        Raises:
            CookError: with the call that is missing.
        """
        if not self.begun:
            raise CookError(
                "session.after_step() without session.before_step(): no schedule moves",
                hint="call session.before_step(step) at the start of each step, counted from 0",
            )
        self.ended = True
        applied, self.begun, self.applied = self.applied, False, False
        if masks and (not applied or self.checked < LOOKED_AT):
            self.checked += 1
            self.check_held(masks, applied=applied)

    def check_held(self, masks: Masks, *, applied: bool = True) -> None:
        """That what the masks hold is zero.

        Args:
            applied: whether a bound optimizer made the last step.

        Raises:
            CookError: it is not.
        """
        if not (broken := masks.broken()):
            return
        have = f" and {len(broken) - 1} more have" if len(broken) > 1 else " has"
        hint = "after weights were replaced (averaged or loaded ones), call session.masks.apply()"
        if not applied:
            hint = "session.bind(optimizer) once before the loop, for every optimizer that makes steps"
        raise CookError(
            f"{broken[0]}{have} weights other than zero where a hard mask holds them at zero", hint=hint
        )
