"""Fewer layers of a model folder, each as a folder of its own, and what they are worth beside the whole."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.hub import load
from cook.model.hub.folder import check_free, read_blueprint
from cook.model.hub.source import check
from cook.model.probe.example import small_example
from cook.passes import Pass
from cook.pipeline import environment
from cook.pipeline.execute import example, state_recorder
from cook.pipeline.folders import output
from cook.pipeline.folders.deliver import deliver
from cook.pipeline.inputs import make_passes
from cook.pipeline.plan import plan_passes
from cook.pipeline.report_parts import state
from cook.pipeline.source_model import SourceModel, open_source_model
from cook.recipe import Recipe, load_recipe, thaw
from cook.report import Model, PassRow, Report, State
from cook.say import Say
from cook.session import Session
from cook.version import __version__

Depth = int | Sequence[int]
"""How many layers stay, or the numbers of those that do."""


@dataclass(frozen=True)
class Slice:
    """Some of the layers of a model.

    Attributes:
        layers: their numbers in the whole model.
        state: parameters, bytes, and as far as there are data multiply-accumulates and metrics.
        path: the folder that was written; None where it was only measured.
    """

    layers: list[int]
    state: State
    path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        figures = {name: getattr(self.state, name) for name in ("parameters", "bytes", "macs", "metrics")}
        return {"layers": self.layers, **figures, "path": None if self.path is None else str(self.path)}


def slice_folder(
    folder: str | PathLike[str],
    depths: Iterable[Depth],
    *,
    choose: str = "alternate",
    out: str | PathLike[str] | None = None,
    write: bool = True,
    force: bool = False,
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe | None = None,
    overrides: Iterable[str] = (),
    say: Say = print,
) -> list[Slice]:
    """Cut models of fewer layers out of one, measure them, and write a folder for each.

    Nothing is trained: a model that learned with `prune.layerdrop` works with few layers, others may not.

    Args:
        folder: of a model without integers, from cook or not.
        depths: how many layers stay, or the numbers of those that do; a slice for each.
        choose: which ones go where a depth is a number: every k-th (`alternate`, as LayerDrop does), the
            last ones (`top`) or the first ones (`bottom`); as in `prune.layers`.
        out: where a single slice is written; by default beside `folder`, named after it and its layers.
        write: False measures only.
        force: replace model folders that are there already.
        recipe: for the task and the data to measure on; by default `recipe.yaml` in the folder. Where that
            is of no use, `say` hears why, and sizes are all that is told.
        overrides: changes to the recipe, as after `--set`.
        say: takes a line for people.

    Returns:
        The whole model first, then a slice for each depth.

    Raises:
        CookError: no model is there, its layers cannot be dropped, there are not so many, or an output is
            taken. Nothing is written then.
        RunError: a folder cannot be written, or does not load back as it was.
    """
    place = _placed(folder)
    _check_floats(place)
    asked = _asked(depths, choose)
    targets = _targets(place, list(asked), out, force=force) if write else {}
    source = open_source_model(place, recipe, list(overrides), say)
    meta = source.load(meta=True)
    for name, options in asked.items():
        try:
            plan_passes(copy.deepcopy(meta), [_pruning(options)])
        except CookError as error:
            raise CookError(error.message, where=f"{folder}, {name}", hint=error.hint) from error
    model = source.context.model
    before = state(state_recorder(source.context, model).state(0))
    slices = [Slice(list(range(len(Anatomy(model).layers))), before)]
    for name, options in asked.items():
        pruning, made = _pruning(options), copy.deepcopy(model)
        with Session([pruning], made, total_steps=0) as session:
            session.finish()
        recorder = state_recorder(source.context, made)
        recorder.whole = before.parameters
        part = Slice(session.facts[pruning.id]["kept"], state(recorder.state(0)), targets.get(name))
        if part.path is not None:
            _write(source, made, slices[0], part, force=force, say=say)
        slices.append(part)
    return slices


def _placed(path: str | PathLike[str]) -> Path:
    """From the root on, and without `..`: a name is made of its last part."""
    return Path(os.path.abspath(Path(path).expanduser()))


def _check_floats(place: Path) -> None:
    check(str(place), lambda _, message, hint: CookError(message, hint=hint), allow_pickle=True)
    blueprint = read_blueprint(place)
    if blueprint is not None and any(edit.op == "integer" for edit in blueprint.edits):
        hint = "slice a model of floats, from the recipe without quant.qat"
        raise CookError(
            "the model holds integers, and slices are cut from floats", where=str(place), hint=hint
        )


def _asked(depths: Iterable[Depth], choose: str) -> dict[str, dict[str, Any]]:
    """For each depth a name, and the options of `prune.layers` that ask for it."""
    found: dict[str, dict[str, Any]] = {}
    for depth in depths:
        if isinstance(depth, int):
            found[f"{depth}-layers"] = {"count": depth, "choose": choose}
        else:
            found[f"layers-{'-'.join(map(str, depth))}"] = {"keep": list(depth)}
    if not found:
        raise CookError("no depth is asked for", hint="say how many layers stay, such as --layers 4")
    return found


def _targets(place: Path, names: list[str], out: Any, *, force: bool) -> dict[str, Path]:
    """Where each slice goes; all of these are free."""
    if out is not None and len(names) > 1:
        hint = "leave --out away, and each goes beside the model; or slice once for each"
        raise CookError(f"one folder cannot hold {len(names)} models", where=str(out), hint=hint)
    found = {name: place.with_name(f"{place.name}-{name}") for name in names}
    if out is not None:
        found = {names[0]: _placed(out)}
    for target in found.values():
        if place.resolve().is_relative_to(target.resolve()):
            raise CookError(
                "the slice would replace what it is cut from", where=str(target), hint="choose another --out"
            )
        if target.resolve().is_relative_to(place.resolve()):
            message = "the slice would lie in the folder that it is cut from"
            raise CookError(message, where=str(target), hint="choose another --out")
        check_free(target, force=force)
    return found


def _pruning(options: Mapping[str, Any]) -> Pass:
    (found,) = make_passes(load_recipe({"version": 1, "passes": [{"prune.layers": options}]}, partial=True))
    return found


def _write(
    source: SourceModel, made: PreTrainedModel, whole: Slice, part: Slice, *, force: bool, say: Say
) -> None:
    """Write a slice, with a recipe that would cut it again and a report of how it was measured."""
    recipe = source.recipe.replace(
        passes=[{"prune.layers": {"keep": part.layers}}], output={"path": str(part.path)}
    )
    recipe = replace(recipe, text=recipe.to_yaml(part.path), overrides=())  # no path of this machine
    (step,) = recipe.passes
    device = made.device
    before, after = whole.state, part.state
    report = Report(
        cook=__version__,
        created=environment.now(),
        recipe={"name": "cook slice", "digest": recipe.digest},
        model=Model(
            name=str(recipe.model.path),
            before=before,
            after=after,
            source_bytes=load.origin_of(made).bytes,
            float32_bytes=4 * before.parameters,
            auto_class=source.auto_class,
        ),
        passes=[
            PassRow(
                id=step.id,
                name=step.name,
                options=thaw(step.options),
                before=before,
                after=after,
                states=[before, after],
                facts={
                    "kept": part.layers,
                    "of": len(whole.layers),
                    "note": f"{len(whole.layers) - len(part.layers)} of {len(whole.layers)} layers removed",
                },
                amounts={
                    "zeros": after.zeros - before.zeros,
                    "removed": before.parameters - after.parameters,
                    "bytes": (after.bytes or 0) - (before.bytes or 0),
                },
            )
        ],
        environment=environment.describe(device, seed=None, precision="fp32"),
    )
    with output.guard(recipe, resume=False, force=force, say=say):
        deliver(
            recipe,
            recipe,
            source.auto_class,
            source.load,
            report,
            made,
            source.context.processor,
            example(source.context) or small_example(made),
            dtype=source.context.dtype,
            force=force,
        )
    say(f"written to {part.path}")
