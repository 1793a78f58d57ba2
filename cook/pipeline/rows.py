"""From what happened to the parts of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cook.passes import Pass
from cook.pipeline.train import Outcome
from cook.recipe import Recipe, thaw
from cook.report import PassRow, State


def state(values: dict[str, Any]) -> State:
    """A state of the report."""
    return State(**values)


def student(recipe: Recipe) -> dict[str, Any] | None:
    """How the recipe makes its student, for the report; None without one."""
    if recipe.student is None:
        return None
    section = thaw(recipe.student)
    return {key: section[key] for key in ("layers", "config", "path") if section.get(key) is not None}


def pass_rows(passes: Sequence[Pass], outcome: Outcome) -> list[PassRow]:
    """A row a pass, in recipe order; its window is told as first and last step."""
    rows = []
    for each in passes:
        states = [state(values) for values in outcome.states[each.id]]
        window = None
        if outcome.train is not None and "start" in each.options:
            window = (each.window.start, max(each.window.start, each.window.end - 1))
        rows.append(
            PassRow(
                id=each.id,
                name=each.name,
                options=thaw(each.given),
                window=window,
                states=states,
                before=states[0],
                after=states[-1],
                facts=outcome.facts[each.id],
            )
        )
    return rows
