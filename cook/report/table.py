"""The tables: of a report, of a plan, of an ablation; for a terminal and as markdown.

Each is first a list of rows of text and then drawn, so that both forms say the same. Zeros, which are
stored still, and removed parameters, which are gone, have columns of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cook.report import units
from cook.report.draw import clean, grid, pipes, wrap
from cook.report.report import Model, PassRow, Report, State

ZEROS = "Zeros are stored still and do not make dense kernels faster; removed parameters are gone."
AMOUNTS = (
    "Zeros, removed parameters and bytes of a row are what its pass did itself; a metric is shown only where"
    " no other pass acted at the same time, and `cook ablate` says what it owes to each pass."
)
WINDOWS = (
    "Windows overlap: a row says what changed while its pass ran, `cook ablate` what changed because of it."
)
"""Of a report from before amounts were counted for each pass."""
NO_DIFFERENCE = "no difference measured"
WITHIN = "within one standard error"
UNWEIGHTED = " (unweighted)"
"""What the log puts behind the name of a term that its weight was not yet multiplied with."""
PASS_ALIGN, LOSS_ALIGN = "<>>>>>", "<>>"
COUNT, SIZE, SPEED = ("fewer", "more"), ("smaller", "larger"), ("faster", "slower")


def terminal(report: Report) -> str:
    """The report for a terminal: the model before and after, then a row a pass; as wide as the terminal
    and at most 100 columns, without colour."""
    parts = [
        "\n".join(wrap(title(report)) + wrap(setting(report))),
        grid(summary_rows(report), align="<>><"),
    ]
    if report.passes:
        notes = {index: note(row) for index, row in enumerate(report.passes, start=1)}
        rows = pass_rows(report)
        parts.append(grid(rows, align=PASS_ALIGN[: len(rows[0])], notes=notes))
    if losses := loss_rows(report):
        parts.append(grid(losses, align=LOSS_ALIGN))
    parts.append("\n".join(wrap(legend(report)) + wrap(reloaded(report))))
    return "\n\n".join(part for part in parts if part)


def markdown(report: Report) -> str:
    """The same tables as markdown, the notes in a column of their own."""
    parts = [pipes(summary_rows(report), align="<>><")]
    if report.passes:
        head, *rows = pass_rows(report)
        noted = [[*row, note(entry)] for row, entry in zip(rows, report.passes, strict=True)]
        parts.append(pipes([[*head, "note"], *noted], align=PASS_ALIGN[: len(head)] + "<"))
    if losses := loss_rows(report):
        parts.append(pipes(losses, align=LOSS_ALIGN))
    parts += [legend(report), reloaded(report), clean(setting(report))]
    return "\n\n".join(part for part in parts if part)


def title(report: Report) -> str:
    """The model and what was done: "digits-vit, layers 1, 3: prune.weights, quant.qat"."""
    passes = ", ".join(row.id for row in report.passes) or "no passes"
    return f"{', '.join([report.model.name, *lineage(report.model)])}: {passes}"


def lineage(model: Model, shown: Callable[[str], str] = str) -> list[str]:
    """What was made of the model, and whom that learned from: "layers 1, 3", "taught by the model itself".

    Args:
        shown: how a hub id or a folder is written.
    """
    parts = []
    for key, value in (model.student or {}).items():
        if key == "layers":
            parts.append(f"layers {', '.join(map(str, value))}")
        elif key == "config":
            parts.append(f"with {', '.join(f'{name} {each}' for name, each in value.items())} from scratch")
        else:
            parts.append(f"in its place {shown(str(value))}")
    if model.teachers:
        names = ["the model itself" if each == "self" else shown(each) for each in model.teachers]
        parts.append(f"taught by {' and '.join(names)}")
    return parts


def legend(report: Report) -> str:
    """What the columns mean, and what they do not."""
    parts = [ZEROS]
    if report.passes:
        parts.append(AMOUNTS if any(row.amounts for row in report.passes) else WINDOWS)
    if report.model.positive_class is not None and "f1_binary" in report.model.after.metrics:
        parts.append(f"f1_binary is the F1 of the label {report.model.positive_class!r}.")
    return " ".join(parts)


def row_counts(report: Report) -> str:
    """How many rows there were, and how many were cut: "trained on 67,349 rows, validated on 872"."""
    counts = _by_split(report, "rows")
    words = {"train": "trained on" if report.train else "training split:", "validation": "validated on"}
    parts = [f"{words.get(split, split)} {count:,} rows" for split, count in counts.items()]
    cut = {split: count for split, count in _by_split(report, "truncated").items() if count}
    of = {"train": "of training", "validation": "of validation"}
    if cut:
        told = " and ".join(f"{count:,} {of.get(split, f'of {split}')}" for split, count in cut.items())
        parts.append(f"rows cut for their length: {told}")
    return ", ".join(parts)


def _by_split(report: Report, what: str) -> dict[str, int]:
    """Counts by split, of the report's `data`, or of `train` where an older one has them there."""
    found = report.data.get(what) or (report.train or {}).get(what) or {}
    return {split: found[split] for split in ("train", "validation") if found.get(split) is not None}


def setting(report: Report) -> str:
    """Under what circumstances: "900 steps (3 epochs) in 2 min 10 s, last checkpoint, cpu, 2 threads"."""
    train, environment = report.train or {}, report.environment
    parts = []
    if train.get("steps") is not None:
        epochs = train.get("epochs")
        told = f" ({units.several(epochs, 'epoch')})" if epochs is not None else ""
        parts.append(units.several(train["steps"], "step") + told)
        if train.get("seconds") is not None:
            parts[-1] += f" in {units.duration(train['seconds'])}"
    if train.get("selected") == "best":
        parts.append(f"best checkpoint (step {train.get('selected_step')})")
    elif train.get("selected"):
        parts.append(f"{train['selected']} checkpoint")
    parts += [str(environment[key]) for key in ("device", "precision") if environment.get(key)]
    if threads := environment.get("threads"):
        parts.append(units.several(threads, "thread"))
    if (processes := environment.get("processes") or 1) > 1:
        parts.append(f"{processes} processes")
    if told := row_counts(report):
        parts.append(told)
    parts += [f"{key} {environment[key]}" for key in ("seed", "torch", "transformers") if key in environment]
    return ", ".join([*parts, f"cook {report.cook}"])


def reloaded(report: Report) -> str:
    """How the folder was found when it was loaded again; nothing when nothing was saved."""
    reload = report.reload
    if reload is None:
        return ""
    needs = "transformers alone loads it" if reload.plain else "loading it needs `import cook`"
    if reload.exact:
        return f"Loaded again in a process of its own: outputs equal to the bit; {needs}."
    largest = units.NOTHING if reload.max_abs_difference is None else f"{reload.max_abs_difference:.2g}"
    return f"Loaded again in a process of its own: outputs differ by at most {largest}; {needs}."


def summary_rows(report: Report) -> list[list[str]]:
    """The model before and after: a head, then a row a measure with `["measure", before, after, change]`."""
    model = report.model
    before, after = model.before, model.after
    rows = [
        ["model", "before", "after", "change"],
        _measure("parameters", before.parameters, after.parameters, units.count, COUNT),
        _removed_row(before.removed, after.removed),
        ["zeros (stored)", units.count(before.zeros), units.count(after.zeros), ""],
        ["sparsity", units.percent(before.sparsity), units.percent(after.sparsity), ""],
        *_size_rows(model),
        _measure("MACs", before.macs, after.macs, units.count, COUNT),
        *(_metric_row(name, before, after, _validated(report)) for name in _metric_names(before, after)),
    ]
    if latency := model.latency:
        batch = latency.get("batch")
        name = "latency" if batch is None else f"latency, batch {batch}"
        times = (latency["before_ms"], latency["after_ms"])
        rows.append([name, *map(units.milliseconds, times), latency_verdict(latency)])
    return rows


def _removed_row(before: int, after: int) -> list[str]:
    """A student can be larger than its source."""
    name, sign = ("removed (gone)", 1) if after >= 0 else ("added", -1)
    return [name, units.count(sign * before), units.count(sign * after), ""]


def pass_rows(report: Report) -> list[list[str]]:
    """A head, then a row a pass: what its window did to sparsity, size and the main metric."""
    if not any(row.amounts for row in report.passes):
        return _rows_by_window(report)
    name = main_metric(report)
    rows = [["pass", "window", "zeros", "removed", "size on disk"]]
    alone = [name is not None and _alone(row, report.passes) for row in report.passes]
    if any(alone):
        rows[0].append(name or "")
    for row, is_alone in zip(report.passes, alone, strict=True):
        amounts = row.amounts
        line = [
            row.id,
            _window(row.window),
            units.change(units.count, amounts.get("zeros")),
            units.count(amounts.get("removed")),
            units.change(units.size, amounts.get("bytes")),
        ]
        if any(alone):
            before, after = (state.metrics.get(name or "") for state in row.during())
            line.append(units.metric_pair(name or "", before, after) if is_alone else units.NOTHING)
        rows.append(line)
    return rows


def _alone(row: PassRow, passes: Sequence[PassRow]) -> bool:
    """Whether no other pass acted in the window; one without a window may act at any time."""
    others = [other for other in passes if other is not row]
    if row.window is None:
        return not others
    first, last = row.window
    return all(other.window and (other.window[1] < first or last < other.window[0]) for other in others)


def _rows_by_window(report: Report) -> list[list[str]]:
    """The rows of a report that has only the states at both ends of each window."""
    name = main_metric(report)
    rows = [["pass", "window", "sparsity", "removed", "size on disk", name or "metric"]]
    for row in report.passes:
        before, after = row.during()
        scores = (before.metrics.get(name), after.metrics.get(name)) if name else (None, None)
        rows.append(
            [
                row.id,
                _window(row.window),
                units.percent_pair(before.sparsity, after.sparsity),
                units.count(after.removed - before.removed),
                units.size_pair(before.bytes, after.bytes),
                units.metric_pair(name or "", *scores),
            ]
        )
    return rows


def latency_verdict(latency: Mapping[str, Any]) -> str:
    """ "1.24x faster (± 3.1 %)", or that no difference was measured.

    None was where both models compute the same operations on the same shapes, so that any difference is
    the machine's, or where the interval of the ratio holds 1. Older reports have a spread in its place.
    """
    before, after, spread = latency["before_ms"], latency["after_ms"], latency.get("spread")
    low, high = latency.get("low"), latency.get("high")
    ratio: float = before / after if low is None else latency["ratio"]
    if low is None or high is None:
        high = ratio * (1 + (spread or 0))
        low = ratio * (1 - (spread or 0))
    verdict = units.times(ratio, 1.0, *SPEED)
    if latency.get("same_operations") or (low <= 1 <= high and spread is not None) or verdict == "same":
        return NO_DIFFERENCE
    return verdict if spread is None else f"{verdict} (± {100 * spread:.1f} %)"


def loss_rows(report: Report) -> list[list[str]]:
    """A head, then a row a loss term: its first and its last mean in the log, before its weight.

    Nothing where the task's own loss is the only one.
    """
    told: dict[str, list[float]] = {}
    for entry in (report.train or {}).get("history") or ():
        for name, value in entry.get("loss", {}).items():
            if name.endswith(UNWEIGHTED):
                told.setdefault(name.removesuffix(UNWEIGHTED), []).append(value)
    rows = [[name, *(f"{values[at]:.4g}" for at in (0, -1))] for name, values in told.items()]
    return [["loss, unweighted", "first", "last"], *rows] if len(rows) > 1 else []


def note(row: PassRow) -> str:
    """One line on a pass: its facts' "note", else its facts that are plain values."""
    if isinstance(given := row.facts.get("note"), str):
        return given
    parts = []
    for key, value in row.facts.items():
        key = key.replace("_", " ")
        if isinstance(value, float):
            parts.append(f"{key} {units.decimal(value)}")
        elif isinstance(value, str | int | bool):
            parts.append(f"{key} {str(value).lower() if isinstance(value, bool) else value}")
    return ", ".join(parts)


def main_metric(report: Report) -> str | None:
    """The metric that the pass table shows: the run's own, else accuracy, else the first but the loss."""
    names = _metric_names(report.model.before, report.model.after)
    wanted = (report.train or {}).get("metric")
    first = [name for name in (wanted, "accuracy") if name in names]
    return next(iter([*first, *(name for name in names if name != "loss"), *names]), None)


def plan_table(plan: Mapping[str, Any]) -> str:
    """What a recipe would do, for a terminal.

    Args:
        plan: `rows` with `id, modules, parameters, zeros, parameters_after, bytes_after, window, note`
            a pass; `before` and `after` with `parameters, bytes, macs`. Sizes after are upper bounds or
            estimates where `sizes` says so.
    """
    before, after = plan["before"], plan["after"]
    model = [
        ["model", "before", "after", "change"],
        _measure("parameters", before["parameters"], after["parameters"], units.count, COUNT),
        _measure("size on disk", before["bytes"], after["bytes"], units.size, SIZE),
        _measure(_counted(plan.get("tokens")), before["macs"], after["macs"], units.count, COUNT),
    ]
    if after.get("sizes"):
        for row in model[1:]:
            row[2:] = [f"{after['sizes']} {row[2]}", "the run will tell"]
    passes = [["pass", "window", "modules", "touches", "zeros", "parameters after", "size after"]]
    for row in plan["rows"]:
        touched = ("modules", "parameters", "zeros")
        # A pass that only adds a loss touches nothing.
        acts = any(row[key] for key in touched)
        bound = f"{row['sizes']} " if row.get("sizes") else ""
        sizes = [units.count(row["parameters_after"]), units.size(row["bytes_after"])]
        numbers = [*(units.count(row[key]) for key in touched), *(bound + size for size in sizes)]
        numbers = numbers if acts else [units.NOTHING] * 5
        passes.append([row["id"], _window(row["window"]), *numbers])
    notes = {index: row.get("note") or "" for index, row in enumerate(plan["rows"], start=1)}
    tables = [grid(model, align="<>><")]
    if plan["rows"]:
        tables.append(grid(passes, align="<>>>>>>", notes=notes))
    return "\n\n".join(tables)


def _counted(tokens: int | None) -> str:
    """The label of multiply-accumulates that a plan counts."""
    return "MACs" if tokens is None else f"MACs ({tokens} tokens)"


def ablation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What changed because of each pass, for a terminal.

    Args:
        rows: one a run, with `left_out` (a pass id, or None for the whole recipe), `metrics`, `bytes`,
            `sparsity` and `zeros`. The changes are those of the run without the pass against the whole.
    """
    whole = next((row for row in rows if row["left_out"] is None), None)
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    names = [name for name in names if name != "loss"][:2] or names
    lines = [["left out", "sparsity", "zeros", "size on disk", "change", *names]]
    for row in rows:
        other = whole if row is not whole else None
        line = [
            "nothing" if row["left_out"] is None else row["left_out"],
            units.percent(row["sparsity"]),
            units.count(row["zeros"]),
            units.size(row["bytes"]),
            units.times(other["bytes"], row["bytes"], *SIZE) if other else "",
        ]
        for name in names:
            value = row["metrics"].get(name)
            change = units.metric_change(name, other["metrics"].get(name), value) if other else ""
            line.append(units.metric(name, value) + (f" ({change})" if change else ""))
        lines.append(line)
    return grid(lines, align="<>>><" + ">" * len(names))


def slice_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A model and what was cut out of it, for a terminal.

    Args:
        rows: the whole model first; each with `layers` (numbers), `parameters`, `bytes`, `macs`, `metrics`.
            Changes are those against the whole.
    """
    whole = rows[0]
    names = [name for name in whole["metrics"] if name != "loss"][:2] or list(whole["metrics"])
    lines = [["layers", "which", "parameters", "size on disk", "MACs", *names]]
    for row in rows:
        which = "all" if row is whole else ", ".join(map(str, row["layers"]))
        figures = [units.count(row["parameters"]), units.size(row["bytes"]), units.count(row["macs"])]
        for name in names:
            value = row["metrics"].get(name)
            change = "" if row is whole else units.metric_change(name, whole["metrics"].get(name), value)
            figures.append(units.metric(name, value) + (f" ({change})" if change else ""))
        lines.append([str(len(row["layers"])), which, *figures])
    return grid(lines, align="><>>>" + ">" * len(names))


def _measure(
    name: str,
    before: units.Number,
    after: units.Number,
    draw: Callable[[units.Number], str],
    words: tuple[str, str],
) -> list[str]:
    return [name, draw(before), draw(after), units.times(before, after, *words)]


def _size_rows(model: Model) -> list[list[str]]:
    """Size on disk, and against the source file and float32 where these differ from it."""
    after = model.after.bytes
    rows = [_measure("size on disk", model.before.bytes, after, units.size, SIZE)]
    others = (("  against the source", model.source_bytes), ("  against float32", model.float32_bytes))
    for name, size in others:
        if size and units.size(size) not in [row[1] for row in rows]:
            rows.append(_measure(name, size, after, units.size, SIZE))
    return rows


def _metric_names(before: State, after: State) -> list[str]:
    return list(dict.fromkeys([*before.metrics, *after.metrics]))


def _validated(report: Report) -> int | None:
    """Rows that metrics were measured on, as far as the report says."""
    return _by_split(report, "rows").get("validation")


def standard_error(share: float, rows: int) -> float:
    """Of a share of independent rows, such as an accuracy: sqrt(p (1 - p) / n)."""
    return math.sqrt(max(0.0, share * (1 - share)) / rows)


def within_error(name: str, before: units.Number, after: units.Number, rows: int | None) -> bool:
    """Whether an accuracy changed by no more than the standard error of the one before on so many rows.

    Other metrics have no such formula, and are never marked.
    """
    if name != "accuracy" or before is None or after is None or not rows or before == after:
        return False
    return abs(after - before) <= standard_error(before, rows)


def _metric_row(name: str, before: State, after: State, rows: int | None) -> list[str]:
    values = (before.metrics.get(name), after.metrics.get(name))
    change = units.metric_change(name, *values)
    if change and units.is_share(name):
        change += " points"
    if within_error(name, *values, rows):
        change += f", {WITHIN}"
    return [name, units.metric(name, values[0]), units.metric(name, values[1]), change]


def _window(window: Any) -> str:
    """The first and the last step: "0-359"."""
    if window is None or isinstance(window, str):
        return window or units.NOTHING
    return f"{window[0]}-{window[1]}"
