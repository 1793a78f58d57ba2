"""The report: what happened to a model, as data. Every table is drawn from it and from nothing else.

The classes mirror report.json key by key. A key that is not known is kept in `extra` and written back,
so that a report passed through an older cook loses nothing.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from cook.errors import CookError, RunError
from cook.report import layout

FILE_NAME = "report.json"
T = TypeVar("T")


@dataclass(kw_only=True)
class State:
    """A model at one moment of a run.

    Attributes:
        parameters: logical parameters that are still there (an int8 weight is one).
        zeros: how many of them are exactly zero.
        sparsity: zeros / parameters, 0 to 1.
        bytes: the size on disk that finishing now would give, or None.
        macs: multiply-accumulates of one example, or None.
        metrics: by name; shares of one, or numbers; None for one that is not finite.
        removed: parameters physically gone since the start of the run.
        when: "attached", "start", "end" or "finished" in the states of a pass.
        step: the optimizer step, counted from 0.
    """

    parameters: int
    zeros: int
    sparsity: float
    bytes: int | None = None
    macs: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    removed: int = 0
    when: str | None = None
    step: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Model:
    """The model at the start and the end of the run.

    Attributes:
        name: the hub id or folder it came from.
        student: what was trained in its place, as the recipe has it: `{"layers": [1, 3, 5]}`, or `config` or
            `path`; None when that was the model itself.
        teachers: whom it learned from: "self", hub ids, folders; not those that were given from Python.
        source_bytes: the weight files it was loaded from; None for one built from a config.
        float32_bytes: its parameters at the start, in float32.
        latency: `batch`, `shape`, `before_ms` and `after_ms` (medians), `ratio`, `spread`, `rounds`.
        auto_class: the transformers class that loads it ("AutoModelForSequenceClassification").
        positive_class: the label that `f1_binary` is of, for a model of two classes; else None.
    """

    name: str
    before: State
    after: State
    source_bytes: int | None = None
    float32_bytes: int | None = None
    student: dict[str, Any] | None = None
    teachers: list[str] = field(default_factory=list)
    latency: dict[str, Any] | None = None
    auto_class: str | None = None
    positive_class: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class PassRow:
    """What changed while one pass ran: `before` is its first state and `after` its last.

    Attributes:
        window: the first and the last step, or None for a pass that acted without training or after it.
        facts: what the pass says of itself; a text under "note" is shown in the tables.
        amounts: what the pass itself did, exactly: `zeros` added, parameters `removed`, `bytes` added. Empty
            in a report of an older cook, which has only the states at both ends of the window.
    """

    id: str
    name: str
    before: State
    after: State
    options: dict[str, Any] = field(default_factory=dict)
    window: tuple[int, int] | None = None
    states: list[State] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    amounts: dict[str, int] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def during(self) -> tuple[State, State]:
        """The states at the start and the end of the window; without a window, the first and the last."""
        if self.window is None:
            return self.before, self.after
        by_state = {state.when: state for state in self.states}
        return by_state.get("start", self.before), by_state.get("end", self.after)


@dataclass(kw_only=True)
class Reload:
    """How the saved folder agreed with the model in memory, loaded again in a process of its own.

    Attributes:
        max_abs_difference: the largest difference of any output.
        exact: whether every output was equal to the bit.
        plain: whether the folder loads with transformers alone, without `import cook`.
    """

    max_abs_difference: float | None
    max_rel_difference: float | None
    exact: bool
    plain: bool
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, repr=False)
class Report:
    """One run. `train` is None when nothing was trained, `reload` when nothing was saved.

    Attributes:
        cook: the version that ran.
        created: the time in ISO 8601.
        recipe: `name` and `digest`.
        train: `steps`, `epochs`, `seconds`, `history`, `selected`, `selected_step`, `metric`.
        environment: versions, device, threads, seed.
        data: `rows` and `truncated`, by split: how many rows there were to train and validate on, and how
            many of them were cut because they were too long. Empty without data.
    """

    cook: str
    created: str
    model: Model
    recipe: dict[str, Any] = field(default_factory=dict)
    passes: list[PassRow] = field(default_factory=list)
    train: dict[str, Any] | None = None
    reload: Reload | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    version: int = layout.VERSION
    extra: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The tables, as for a terminal."""
        from cook.report.table import terminal

        return terminal(self)

    def __repr__(self) -> str:
        passes = ", ".join(row.id for row in self.passes) or "no passes"
        return f"<Report of {self.model.name}: {passes}>"

    def _repr_markdown_(self) -> str:
        """The tables in a notebook."""
        from cook.report.table import markdown

        return markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, a copy. Numbers that are not finite become null."""
        value: dict[str, Any] = _fold(self)
        if not self.data:
            del value["data"]
        order = ["version", "cook", "recipe", "created", "model", "passes", "train", "reload", "environment"]
        return {**{name: value[name] for name in order}, **value}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str = "the report") -> Report:
        """The report that `to_dict` gave.

        Raises:
            CookError: when `value` does not follow the layout; `where` is named in it.
        """
        plain = _plain(value)
        layout.check(plain, where)
        model, reload = plain["model"], plain.get("reload")
        plain["model"] = _unfold(Model, {**model, **_ends(model)})
        plain["passes"] = [_pass_row(row) for row in plain.get("passes", [])]
        plain["reload"] = None if reload is None else _unfold(Reload, reload)
        return _unfold(cls, plain)

    def write(self, path: str | Path) -> Path:
        """Write the report to the file `path`: all of it or nothing.

        Raises:
            RunError: when the disk refuses; an older file of that name is left as it was.
        """
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        temporary: str | None = None
        try:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
            ) as file:
                temporary = file.name
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            message = f"the report cannot be written: {error.strerror or error}"
            raise RunError(message, where=str(path)) from error
        return path

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """The report in the file `path`, or in the output folder `path`.

        Raises:
            CookError: when there is none, or when it is broken.
        """
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            hint = f"the folder that `cook run` wrote holds a {FILE_NAME}"
            raise CookError(f"there is no report at {file}", hint=hint) from error
        except OSError as error:
            raise CookError(f"cannot be read: {error.strerror or error}", where=str(file)) from error
        except (ValueError, RecursionError) as error:
            raise CookError(f"is not JSON: {error}", where=str(file)) from error
        return cls.from_dict(value, where=str(file))


def _pass_row(row: dict[str, Any]) -> PassRow:
    window = row.get("window")
    built = {
        "states": [_unfold(State, state) for state in row.get("states", [])],
        "window": None if window is None else (window[0], window[1]),
    }
    return _unfold(PassRow, {**row, **_ends(row), **built})


def _ends(value: dict[str, Any]) -> dict[str, State]:
    return {name: _unfold(State, value[name]) for name in ("before", "after")}


def _unfold(cls: Callable[..., T], value: dict[str, Any]) -> T:
    """Build the dataclass `cls`; keys that are none of its fields go to `extra`."""
    known = {item.name for item in fields(cls)} - {"extra"}  # type: ignore[arg-type]
    named = {key: item for key, item in value.items() if key in known}
    return cls(**named, extra={key: item for key, item in value.items() if key not in known})


def _fold(item: Any) -> dict[str, Any]:
    """A dataclass as JSON values, `extra` spread out again. `when` and `step` are left out when None."""
    values = {entry.name: getattr(item, entry.name) for entry in fields(item) if entry.name != "extra"}
    skipped = {name for name in ("when", "step") if name in values and values[name] is None}
    return _plain({**item.extra, **{key: value for key, value in values.items() if key not in skipped}})


def _plain(value: Any) -> Any:
    """`value` with dicts for mappings, lists for sequences, plain numbers for numpy's."""
    if isinstance(value, State | Model | PassRow | Reload):
        return _fold(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return value
