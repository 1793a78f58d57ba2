"""`cook run`: recipe -> plan -> attach -> train -> finish -> save -> verify -> report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cook.data.rows import cache
from cook.errors import CookError
from cook.model.hub import load
from cook.model.probe.example import small_example
from cook.pipeline import environment, tokenizer_check
from cook.pipeline.execute import RunResult, execute
from cook.pipeline.folders import depend, output
from cook.pipeline.folders.deliver import deliver
from cook.pipeline.inputs import (
    Data,
    auto_class_without_data,
    load_model,
    load_student,
    load_teacher,
    make_passes,
    planned_teachers,
    read_data,
    stored_dtype,
)
from cook.pipeline.plan import plan_passes
from cook.pipeline.prepare import prepare
from cook.pipeline.report_parts import data_counts, pass_rows, positive_class, state, student
from cook.recipe import Recipe, load_recipe
from cook.report import Model, Report
from cook.say import Say, silent
from cook.teacher.teacher import Given
from cook.train.seeds import seed_everything
from cook.version import __version__

SOME = 1000
"""Numbers of each tensor that are looked at to tell models apart."""


def run(
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe,
    *,
    resume: bool = False,
    force: bool = False,
    say: Say = print,
    progress: bool = True,
) -> Report:
    """Carry out a recipe and write its output folder.

    Without a `train` section the passes act at once: they need no data but what they look at, and without
    data no metric is measured.

    Args:
        recipe: a path, a mapping or a Recipe, with model and output; to train, with data and train.
        resume: go on from the newest checkpoint; on a finished run return its report.
        force: replace an output, or an interrupted run, that is there.
        say: takes a line for people.
        progress: draw a progress bar.

    Returns:
        The report, as written to `report.json` in the output folder.

    Raises:
        CookError: the recipe or its inputs are wrong.
        RunError: the run failed. The output folder is then as it was.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    _check_sections(recipe)
    for note in recipe.notes:
        say(note)
    begun = resume and output.waits(recipe)
    if resume and not begun and (report := output.finished(recipe)) is not None:
        say(f"{recipe.output.path} is finished already")
        return report
    depend.protect(recipe)
    force = force or begun  # what waits was allowed to replace the output when it began
    with output.guard(recipe, resume=resume, force=force, say=say) as folder, output.resumable(folder):
        return _cook(recipe, folder, resume=resume, force=force, say=say, progress=progress)


def _cook(recipe: Recipe, folder: Path, *, resume: bool, force: bool, say: Say, progress: bool) -> Report:
    """The run itself, with its checkpoints in `folder`."""

    def build(needed: Recipe) -> None:
        go_on = resume and output.finished(needed) is None
        run(needed, resume=go_on, force=True, say=say, progress=progress)

    asked = recipe
    recipe = depend.built(asked, build, say)
    data = read_data(recipe, say) if recipe.data is not None else None
    passes = make_passes(recipe)
    planned = load_model(recipe, data, silent, meta=True)
    teachers = planned_teachers(recipe, planned, data)
    plan_passes(load_student(recipe, planned, data, silent), passes, teachers)

    accelerator = environment.accelerator(recipe, folder.parent)
    environment.start_tracker(accelerator, recipe, output.LOGS)
    processes = accelerator.num_processes
    seed = 0 if recipe.train is None else recipe.train.seed
    seed_everything(seed)  # a head, or a whole model, that starts from random weights
    source = load_model(recipe, data, say)
    if recipe.train is None and load.origin_of(source).new_head:
        hint = "compress a model that was trained for the task, or add 'train: {epochs: 1}'"
        raise recipe.error("model", "it has no trained head, and there is no train section", hint)
    processor = _processor(recipe, data, source)
    if data is not None:
        tokenizer_check.check(recipe, source.config, processor, data.texts(), say)
        say(f"preparing {sum(data.counts.values()):,} rows")

    def teacher() -> Given:
        if recipe.train is None or data is None:
            return None
        return load_teacher(recipe, source, data, processor, say)

    context = prepare(recipe, source, data, processor, accelerator, teacher=teacher, say=say)
    inputs = {}
    if recipe.train is not None and data is not None:
        inputs = {
            "the training rows": cache.of_rows(data.raw["train"], data.raw["train"].column_names),
            "the model's weights": cache.of_tensors(
                {name: value.flatten()[:SOME] for name, value in source.state_dict().items()}
            ),
        }

    def state() -> dict[str, Any] | None:
        if not resume or recipe.train is None:
            return None
        with accelerator.main_process_first():  # it moves damaged checkpoints aside
            return output.restore(folder, asked, processes, say, inputs)

    context = replace(
        context,
        folder=folder,
        dtype=stored_dtype(recipe, source),
        identity=output.identity(asked, processes, inputs),
        state=state(),
        progress=progress,
    )
    outcome = execute(context)
    auto_class = auto_class_without_data(recipe) if data is None else data.task.auto_class
    report = Report(
        cook=__version__,
        created=environment.now(),
        recipe={"name": asked.name, "digest": asked.digest},
        model=_model(recipe, auto_class, source, outcome),
        passes=pass_rows(context.passes, outcome),
        train=outcome.train,
        environment=environment.describe(
            accelerator.device,
            seed=seed,
            precision="fp32" if recipe.train is None else recipe.train.precision,
            processes=processes,
        ),
        data=data_counts(data, context.rows, recipe.eval.limit),
    )
    for tracker in accelerator.trackers:
        tracker.finish()
    if accelerator.is_main_process:
        deliver(
            recipe,
            asked,
            auto_class,
            partial(load_model, recipe, data, silent),
            report,
            context.model,
            outcome.processor,
            outcome.sample or small_example(context.model),
            dtype=context.dtype,
            force=force,
            say=say,
        )
        shutil.rmtree(folder.parent, ignore_errors=True)
        say(f"written to {recipe.output.path}")
    accelerator.wait_for_everyone()
    return report


def _check_sections(recipe: Recipe) -> None:
    """What a run needs: a model and an output; to train, data; without training, one-shot passes."""
    trains = ("data",) if recipe.train is not None else ()
    for section in ("model", *trains, "output"):
        if not recipe.has(section):
            raise CookError(
                f"the recipe has no {section} section",
                where=recipe.name,
                hint="`cook run` needs model and output, and data to train on",
            )
    if recipe.train is None and not recipe.passes:
        hint = "add passes that act at once, or 'train: {epochs: 1}' with data"
        raise CookError("there is neither training nor a pass: nothing to do", where=recipe.name, hint=hint)


def _processor(recipe: Recipe, data: Data | None, model: PreTrainedModel) -> Any | None:
    """The tokenizer or image processor, that the output folder gets too."""
    if data is not None:
        return load.load_processor(recipe.model, data.task.processor) or data.task.plain_processor()
    kind = "image" if model.main_input_name == "pixel_values" else "tokenizer"
    return load.load_processor(recipe.model, kind)


def _model(recipe: Recipe, auto_class: str, source: PreTrainedModel, outcome: RunResult) -> Model:
    return Model(
        name=recipe.model.path or f"{source.config.model_type} from a config",
        student=student(recipe),
        teachers=[each.path for each in recipe.teachers],
        before=state(outcome.before),
        after=state(outcome.after),
        source_bytes=load.origin_of(source).bytes,
        float32_bytes=4 * outcome.before["parameters"],
        auto_class=auto_class,
        positive_class=positive_class(source.config, outcome.after["metrics"]),
    )
