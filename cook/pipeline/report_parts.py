"""From what happened to the parts of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from cook.options import plain
from cook.passes import Pass
from cook.pipeline.execute import RunResult
from cook.pipeline.inputs import Data
from cook.recipe import Recipe
from cook.report import PassRow, State


def state(values: dict[str, Any]) -> State:
    """A state of the report."""
    return State(**values)


def student(recipe: Recipe) -> dict[str, Any] | None:
    """How the recipe makes its student, for the report; None without one."""
    if recipe.student is None:
        return None
    section = plain(recipe.student)
    return {key: section[key] for key in ("layers", "config", "path") if section[key] is not None}


def positive_class(config: Any, metrics: Mapping[str, Any]) -> str | None:
    """The label that `f1_binary` is of; None where there is no such metric."""
    if "f1_binary" not in metrics:
        return None
    return str((getattr(config, "id2label", None) or {}).get(1, 1))


def data_counts(
    data: Data | None, rows: Mapping[str, Dataset], limit: int | None = None
) -> dict[str, dict[str, int]]:
    """The `data` of a report: how many rows each split has, and how many of them were cut.

    Args:
        data: what the rows were prepared from; None without data.
        rows: prepared splits. Copies by augmentation, which come last, do not count.
        limit: how many rows are evaluated on at most, as `eval.limit` says.
    """
    if data is None or not rows:
        return {}
    counts = {split: len(raw) for split, raw in data.raw.items()}
    originals = {split: table.select(range(counts[split])) for split, table in rows.items()}
    if "validation" in counts and limit is not None:
        counts["validation"] = min(counts["validation"], limit)
    truncated = {split: data.task.cut(table) for split, table in originals.items()}
    return {"rows": counts, "truncated": truncated}


def pass_rows(passes: Sequence[Pass], outcome: RunResult) -> list[PassRow]:
    """A row a pass, in recipe order; its window is told as first and last step."""
    rows = []
    for each in passes:
        states = [state(values) for values in outcome.states[each.id]]
        window = None
        if outcome.train is not None and hasattr(each.options, "start"):
            window = (each.window.start, max(each.window.start, each.window.end - 1))
        rows.append(
            PassRow(
                id=each.id,
                name=each.name,
                options=plain(each.options),
                window=window,
                states=states,
                before=states[0],
                after=states[-1],
                facts=outcome.facts[each.id],
                amounts=outcome.amounts[each.id],
            )
        )
    return rows
