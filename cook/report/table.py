"""The tables: of a report, of a plan, of an ablation; for a terminal and as markdown.

Each is first a list of rows of text and then drawn, so that both forms say the same. Zeros, which are
stored still, and removed parameters, which are gone, have columns of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cook.report import units
from cook.report.draw import clean, grid, pipes, wrap
from cook.report.report import Model, PassRow, Report, State

ZEROS = "Zeros are stored still and do not make dense kernels faster; removed parameters are gone."
WINDOWS = (
    "Windows overlap: a row says what changed while its pass ran, `cook ablate` what changed because of it."
)
UNWEIGHTED = " (unweighted)"
"""What the log puts behind the name of a term that its weight was not yet multiplied with."""
PASS_ALIGN, LOSS_ALIGN = "<>>>>>", "<>>"
COUNT, SIZE, SPEED = ("fewer", "more"), ("smaller", "larger"), ("faster", "slower")


def terminal(report: Report) -> str:
    """The report for a terminal: the model before and after, then a row a pass; 100 columns, no colour."""
    parts = [
        "\n".join(wrap(title(report)) + wrap(setting(report))),
        grid(summary_rows(report), align="<>><"),
    ]
    if report.passes:
        notes = {index: note(row) for index, row in enumerate(report.passes, start=1)}
        parts.append(grid(pass_rows(report), align=PASS_ALIGN, notes=notes))
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
        parts.append(pipes([[*head, "note"], *noted], align=PASS_ALIGN + "<"))
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
    return f"{ZEROS} {WINDOWS}" if report.passes else ZEROS


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
        *(_metric_row(name, before, after) for name in _metric_names(before, after)),
    ]
    if latency := model.latency:
        batch = latency.get("batch")
        name = "latency" if batch is None else f"latency, batch {batch}"
        times = (latency["before_ms"], latency["after_ms"])
        rows.append(_measure(name, *times, units.milliseconds, SPEED))
        if latency.get("spread") is not None:
            rows[-1][3] += f" (± {100 * latency['spread']:.1f} %)"
    return rows


def _removed_row(before: int, after: int) -> list[str]:
    """A student can be larger than its source."""
    name, sign = ("removed (gone)", 1) if after >= 0 else ("added", -1)
    return [name, units.count(sign * before), units.count(sign * after), ""]


def pass_rows(report: Report) -> list[list[str]]:
    """A head, then a row a pass: what its window did to sparsity, size and the main metric."""
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
        if isinstance(value, float):
            parts.append(f"{key} {value:.4g}")
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


def _metric_row(name: str, before: State, after: State) -> list[str]:
    values = (before.metrics.get(name), after.metrics.get(name))
    change = units.metric_change(name, *values)
    if change and units.is_share(name):
        change += " points"
    return [name, units.metric(name, values[0]), units.metric(name, values[1]), change]


def _window(window: Any) -> str:
    """The first and the last step: "0-359"."""
    if window is None or isinstance(window, str):
        return window or units.NOTHING
    return f"{window[0]}-{window[1]}"
