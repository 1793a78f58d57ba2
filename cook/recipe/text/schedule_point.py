"""Moments of a run: a step (`500`), epochs (`1.5 epochs`) or a share of the run (`30%`).

A recipe says when something happens before anybody knows how many steps the run has; a `SchedulePoint`
keeps what was written and becomes a step once that is known.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from cook.errors import CookError

FORMS = "write a step (500), epochs ('1.5 epochs') or a share of the run ('30%')"

_FORM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(?: ?(%)| +(epochs?))?")


@dataclass(frozen=True)
class SchedulePoint:
    """When something happens in a run.

    Attributes:
        amount: how many of the unit, at least 0.
        unit: `steps`, `epochs` or `%`.
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, value: Any) -> SchedulePoint:
        """The point that a recipe's value means.

        Raises:
            CookError: when it is none of the three forms, negative, or over 100 %.
        """
        text = value.strip() if isinstance(value, str) else value
        if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
            text = str(int(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            text = str(value)
        found = _FORM.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
            raise CookError(f"found {shown}, which is no point in a run", hint=FORMS)
        number, percent, epochs = found.groups()
        amount = float(number)
        if percent and amount > 100:
            raise CookError(f"found {text}; a run has only 100%", hint=FORMS)
        if not percent and not epochs and "." in number:
            hint = f"write '{number} epochs', '{amount * 100:g}%' or a whole number"
            raise CookError(f"found {number} steps; expected a whole number of steps", hint=hint)
        return cls(amount, "%" if percent else "epochs" if epochs else "steps")

    def step(self, total_steps: int, steps_per_epoch: int) -> int:
        """The step of a run at which the point falls, rounded half up, from 0 to `total_steps`.

        Raises:
            CookError: when it lies past the end of the run.
        """
        size = {"steps": 1.0, "epochs": float(steps_per_epoch), "%": total_steps / 100}[self.unit]
        step = math.floor(self.amount * size + 0.5)
        if step > total_steps:
            epochs = "" if self.unit != "epochs" else f" (step {step})"
            raise CookError(
                f"{self}{epochs} is past the end of the run, which has {total_steps} steps "
                f"of {steps_per_epoch} an epoch",
                hint="a share of the run ('30%') fits a run of any length",
            )
        return step

    def __str__(self) -> str:
        number = f"{self.amount:.15g}"
        if self.unit == "steps":
            return f"step {number}"
        return f"{number}%" if self.unit == "%" else f"{number} epoch{'' if self.amount == 1 else 's'}"
