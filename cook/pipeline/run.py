"""`cook run`: recipe -> plan -> attach -> train -> finish -> save -> verify -> report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from accelerate import Accelerator
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
from cook.pipeline.prepare import RunContext, prepare
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
    _plan(recipe, data)
    accelerator = environment.accelerator(recipe, folder.parent)
    environment.start_tracker(accelerator, recipe, output.LOGS)
    seed_everything(_seed(recipe))  # a head, or a whole model, that starts from random weights
    source = _source(recipe, data, say)
    context = _context(recipe, data, source, accelerator, say)
    inputs = _inputs(data, source) if recipe.train is not None and data is not None else {}
    processes, state = accelerator.num_processes, None
    if resume and recipe.train is not None:
        with accelerator.main_process_first():  # it moves damaged checkpoints aside
            state = output.restore(folder, asked, processes, say, inputs)
    context = replace(
        context,
        folder=folder,
        identity=output.identity(asked, processes, inputs),
        state=state,
        progress=progress,
    )
    result = execute(context)
    report = _report(asked, context, source, data, result)
    for tracker in accelerator.trackers:
        tracker.finish()
    if accelerator.is_main_process:
        deliver(
            recipe,
            asked,
            _auto_class(recipe, data),
            partial(load_model, recipe, data, silent),
            report,
            context.model,
            result.processor,
            result.sample or small_example(context.model),
            dtype=context.dtype,
            force=force,
            say=say,
        )
        shutil.rmtree(folder.parent, ignore_errors=True)
        say(f"written to {recipe.output.path}")
    accelerator.wait_for_everyone()
    return report


def _plan(recipe: Recipe, data: Data | None) -> None:
    """Plan every pass before any weight is loaded, so that what does not fit is refused early."""
    source = load_model(recipe, data, silent, meta=True)
    teachers = planned_teachers(recipe, source, data)
    plan_passes(load_student(recipe, source, data, silent), make_passes(recipe), teachers)


def _seed(recipe: Recipe) -> int:
    return 0 if recipe.train is None else recipe.train.seed


def _source(recipe: Recipe, data: Data | None, say: Say) -> PreTrainedModel:
    """The recipe's model with its weights.

    Raises:
        CookError: its head was never trained, and nothing trains it.
    """
    source = load_model(recipe, data, say)
    if recipe.train is None and load.origin_of(source).new_head:
        hint = "compress a model that was trained for the task, or add 'train: {epochs: 1}'"
        raise recipe.error("model", "it has no trained head, and there is no train section", hint)
    return source


def _context(
    recipe: Recipe, data: Data | None, source: PreTrainedModel, accelerator: Accelerator, say: Say
) -> RunContext:
    """The context of the run, with the recipe's tokenizer and teachers."""
    processor = _processor(recipe, data, source)
    if data is not None:
        tokenizer_check.check(recipe, source.config, processor, data.texts(), say)
        say(f"preparing {sum(data.counts.values()):,} rows")

    def teacher() -> Given:
        if recipe.train is None or data is None:
            return None
        return load_teacher(recipe, source, data, processor, say)

    context = prepare(recipe, source, data, processor, accelerator, teacher=teacher, say=say)
    return replace(context, dtype=stored_dtype(recipe, source))


def _inputs(data: Data, source: PreTrainedModel) -> dict[str, str]:
    """Hashes of the training rows and of the model, by which a resumed run knows them."""
    weights = {name: value.flatten()[:SOME] for name, value in source.state_dict().items()}
    return {
        "the training rows": cache.of_rows(data.raw["train"], data.raw["train"].column_names),
        "the model's weights": cache.of_tensors(weights),
    }


def _auto_class(recipe: Recipe, data: Data | None) -> str:
    return auto_class_without_data(recipe) if data is None else data.task.auto_class


def _report(
    asked: Recipe, context: RunContext, source: PreTrainedModel, data: Data | None, result: RunResult
) -> Report:
    """The report of a run.

    Args:
        asked: the recipe as it was written.
    """
    recipe = context.recipe
    return Report(
        cook=__version__,
        created=environment.now(),
        recipe={"name": asked.name, "digest": asked.digest},
        model=_model(recipe, _auto_class(recipe, data), source, result),
        passes=pass_rows(context.passes, result),
        train=result.train,
        environment=environment.describe(
            context.accelerator.device,
            seed=_seed(recipe),
            precision="fp32" if recipe.train is None else recipe.train.precision,
            processes=context.accelerator.num_processes,
        ),
        data=data_counts(data, context.rows, recipe.eval.limit),
    )


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
