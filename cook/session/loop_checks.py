"""Checks that a custom training loop makes the calls required by a session."""

from __future__ import annotations

from dataclasses import dataclass

from cook.errors import CookError
from cook.model.nn.masks import Masks

LOOKED_AT = 3
"""The number of masked steps whose weights are checked; `finish` checks again."""


@dataclass
class Steps:
    """The calls made since the last step.

    Attributes:
        begun: whether `before_step` was called.
        applied: whether a bound optimizer took a step and applied the masks.
        bound: whether an optimizer is bound.
        checked: number of steps whose weights were checked.
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
        """Called at the start of a step."""
        self.begun = self.moved = True

    def check_all(self, masks: Masks) -> None:
        """Check at the end that the masks hold, and that a loop with losses started and ended its steps.

        Raises:
            CookError: a call is missing; the message names it.
        """
        self.check_held(masks, applied=self.bound)
        if self.learned and not self.moved:
            raise CookError(
                "session.before_step() was never called: no schedule moved",
                hint="call session.before_step(step) at the start of each step, counted from 0",
            )
        # A bound optimizer that took no step at all, as with overflowing gradients, has no step to end.
        if self.learned and not self.ended and (self.applied or not self.bound):
            raise CookError(
                "session.after_step() was never called: no pass knows that a step was made",
                hint="call session.after_step() after each step of the optimizer",
            )

    def check(self, masks: Masks) -> None:
        """Check after a step that it started with `before_step`, and that the masks were applied.

        Raises:
            CookError: a call is missing; the message names it.
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
        """Check that masked weights are zero.

        Args:
            applied: whether a bound optimizer took the last step.

        Raises:
            CookError: a masked weight is not zero.
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
