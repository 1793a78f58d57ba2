"""What a schema cannot say: rules between keys and sections, and each pass's own check.

Every rule looks at a normal value that may be wrong elsewhere, and stays silent about what the
schema has already reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cook.errors import CookError
from cook.options import Schema
from cook.passes import Spec, conflict
from cook.recipe.schema.shape import fill, walk
from cook.recipe.text.place import Marks, Path, where
from cook.recipe.text.schedule_point import SchedulePoint

Found = Iterator[tuple[Path, CookError]]


def rules(
    value: dict[str, Any],
    marks: Marks,
    name: str,
    passes: Mapping[str, type[Spec]],
    *,
    wrong: list[Path],
    partial: bool,
) -> Found:
    """The mistakes between parts of a recipe that are each right by themselves.

    Args:
        value: a normal value.
        wrong: paths with mistakes: a pass in which there is one is not built.
        partial: whether data, training and teacher may come from elsewhere.
    """

    def problem(path: Path, message: str, hint: str | None = None) -> tuple[Path, CookError]:
        return path, CookError(message, where=where(marks, name, path), hint=hint)

    listed = value.get("passes")
    items = list(uses(listed)) if isinstance(listed, list) else []
    known = [(path, pass_name, passes[pass_name]) for path, pass_name, _ in items if pass_name in passes]
    right = [item for item in known if not any(other[:2] == item[0] for other in wrong)]
    sound = []
    for path, pass_name, cls in right:
        found = list(_pass(path, cls, value["passes"][path[1]][pass_name], marks, name))
        yield from found
        sound += [] if found else [(path, pass_name, cls)]
    if not partial:
        yield from _needs(value, known, sound, problem)
    model = value.get("model")
    named = isinstance(model, dict) and any(model.get(key) for key in ("path", "config", "recipe"))
    if named or not partial:  # else the model is in memory
        yield from _task(value, problem)
    yield from _augment(value, problem)
    yield from _incompatible(known, problem)
    yield from _readers(value, known, problem)
    for path, pass_name, cls in right:
        options = value["passes"][path[1]][pass_name]
        yield from _schedule_points((*path, pass_name), cls.schema(), options, value.get("train"), problem)


def uses(listed: list[Any]) -> Iterator[tuple[Path, str, str]]:
    """Path, name and id of each pass of a list; the second use of `a.b` has the id `a.b#2`."""
    seen: dict[str, int] = {}
    for index, item in enumerate(listed):
        if isinstance(item, dict) and len(item) == 1:
            name = next(iter(item))
            seen[name] = seen.get(name, 0) + 1
            yield ("passes", index), name, name if seen[name] == 1 else f"{name}#{seen[name]}"


def names(value: Any) -> list[str]:
    """The names of the passes of a normal value, known or not; none where there is no list of them."""
    listed = value.get("passes") if isinstance(value, dict) else None
    return [name for _, name, _ in uses(listed)] if isinstance(listed, list) else []


Problem = Callable[..., tuple[Path, CookError]]
Known = tuple[Path, str, type[Spec]]


def _needs(value: dict[str, Any], known: list[Known], sound: list[Known], problem: Problem) -> Found:
    advice = {
        "train": "add 'train: {epochs: 1}'",
        "data": "add the section: 'data: {path: ..., text: ..., label: ...}'",
        "teacher": "add 'teacher: self', or the path of a better model",
    }
    wants: dict[str, str] = {"data": "train"} if "train" in value else {}
    wanted = [
        # What options decide is known of those that passed their own check.
        (name, _made(cls, value["passes"][path[1]][name]).wants() if item in sound else cls.needs)
        for item in known
        for path, name, cls in [item]
    ]
    sections = ("teacher", "teacher"), ("train", "training"), ("data", "training"), ("data", "calibration")
    for section, need in sections:
        for name, needs in wanted:
            if need in needs:
                wants.setdefault(section, name)
    if "teacher" in value and "train" not in value and "train" not in wants:
        hint = "leave it out, or add 'train: {epochs: 1}' and data"
        yield problem(("teacher",), "nothing is trained, so nothing learns from a teacher", hint)
    for section, who in wants.items():
        if section not in value:
            yield problem((section,), f"missing; {who} needs it", advice[section])


def _task(value: dict[str, Any], problem: Problem) -> Found:
    model = value.get("model")
    if isinstance(model, dict) and model.get("head") == "new" and "data" not in value:
        yield problem(("model", "head"), "a new head needs data, whose labels it gets", "add a data section")
    if isinstance(model, dict) and model.get("task") is None and ("train" in value or "data" in value):
        hint = "write task: text-classification or task: image-classification"
        yield problem(("model", "task"), "missing; a model that meets data needs a task", hint)


def _incompatible(known: list[Known], problem: Problem) -> Found:
    """Passes that no options let a recipe combine; where options decide, the plan finds what they say."""
    for position, (path, name, cls) in enumerate(known):
        for above, other, upper in known[:position]:
            found = conflict(upper, cls)
            if found is None or found.unless is not None:
                continue
            message = f"{name} cannot be combined with {other} in passes[{above[1]}]: {found.reason}"
            hint = f"list {name} above {other}" if found.only_below else "leave out one of the two"
            if name == other and cls.once:
                message = f"{name} stands here a second time"
                hint = "give one of them all that both should do"
            yield problem(path, message, hint)
            break  # one mistake a pass


def _readers(value: dict[str, Any], known: list[Known], problem: Problem) -> Found:
    model = value.get("model")
    images = isinstance(model, dict) and model.get("task") == "image-classification"
    for path, name, cls in known:
        if images and cls.reads == "text":
            yield problem(path, f"{name} is for models that read text", "leave it out")


def _augment(value: dict[str, Any], problem: Problem) -> Found:
    data, model = value.get("data"), value.get("model")
    asked = data.get("augment") if isinstance(data, dict) else None
    if not isinstance(asked, dict):
        return
    if isinstance(model, dict) and model.get("task") == "image-classification":
        hint = "leave it out: it replaces words in texts"
        yield problem(("data", "augment"), "there are no words in images", hint)
    masked = asked.get("method") == "masked-lm"
    if masked and asked.get("model") is None:
        hint = "name a masked language model that reads as the student does, or use method: neighbours"
        yield problem(("data", "augment", "model"), "missing; masked-lm needs it", hint)
    if not masked and asked.get("model") is not None:
        hint = "add method: masked-lm; neighbours takes the embeddings of the teacher"
        yield problem(("data", "augment", "model"), "there is no use for a model", hint)


def _made(cls: type[Spec], options: dict[str, Any], where: str | None = None) -> Spec:
    return cls(fill({"properties": cls.schema()}, options), where=where)


def _pass(path: Path, cls: type[Spec], options: dict[str, Any], marks: Marks, name: str) -> Found:
    """The pass's own check, its error moved to the line of the option that it names."""
    place = where(marks, name, path)
    try:
        _made(cls, options, where=place).check()
    except CookError as error:
        option: Path = ()
        if error.where and error.where.startswith(f"{place}."):
            option = (cls.name, error.where.removeprefix(f"{place}."))
            error.where = where(marks, name, path + option)
        error.where = error.where or place
        yield path + option, error


def _schedule_points(
    path: Path, options: Schema, given: dict[str, Any], train: Any, problem: Problem
) -> Found:
    """Windows that end before they begin, and points past the end of a run of known length."""
    run = train if isinstance(train, dict) else {}
    length = {"steps": run.get("steps"), "epochs": run.get("epochs")}
    points: dict[Path, SchedulePoint] = {}
    for inner, schema, item in walk({"properties": options}, given):
        if schema.get("x-schedule-point") and item is not None:
            point = points[inner] = SchedulePoint.parse(item)
            total = length.get(point.unit)
            if isinstance(total, (int, float)) and point.amount > total:
                yield problem(
                    path + inner, f"{point} is past the end of the run: train.{point.unit} is {total}"
                )
    start, end = points.get(("start",)), points.get(("end",))
    if start and end and start.unit == end.unit and start.amount > end.amount:
        yield problem((*path, "end"), f"the pass ends at {end}, before it begins at {start}")
