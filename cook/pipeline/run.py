"""`cook run`: recipe -> plan -> attach -> train -> finish -> save -> verify -> report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import cook
from cook.errors import CookError
from cook.model import load
from cook.pipeline import depend, environment, output, tokenizers
from cook.pipeline.deliver import deliver
from cook.pipeline.inputs import (
    Say,
    load_model,
    load_student,
    load_teacher,
    make_passes,
    planned_teachers,
    prepared,
    read_data,
    silent,
    stored_dtype,
)
from cook.pipeline.plan import plan_passes
from cook.pipeline.rows import pass_rows, state, student
from cook.pipeline.train import Outcome, Work, carry_out
from cook.recipe import Recipe, load_recipe
from cook.report import Model, Report
from cook.train import cache
from cook.train.augment import augmented
from cook.train.seeds import seed_everything

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

    Args:
        recipe: a path, a mapping or a Recipe, with model, data, train and output.
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
    data = read_data(recipe, say)
    passes = make_passes(recipe)
    planned = load_model(recipe, data, silent, meta=True)
    teachers = planned_teachers(recipe, planned, data)
    plan_passes(load_student(recipe, planned, data, silent), passes, teachers)

    accelerator = environment.accelerator(recipe, folder.parent)
    accelerator.init_trackers(output.LOGS)
    processes = accelerator.num_processes
    seed_everything(recipe.train.seed)  # a head, or a whole model, that starts from random weights
    source = load_model(recipe, data, say)
    processor = load.load_processor(recipe.model, data.task.processor) or data.task.plain_processor()
    model = load_student(recipe, source, data, say, processor)
    dtype = stored_dtype(recipe, source)
    texts = data.task.texts(data.raw["train"])
    tokenizers.check(recipe, source.config, processor, data.task, texts)
    rows = prepared(data, processor, say)
    teacher = load_teacher(recipe, source, data, processor, say)
    rows["train"] = augmented(
        rows["train"],
        data.task,
        recipe.train,
        processor=processor,
        model=source,
        teacher=teacher,
        accelerator=accelerator,
    )

    inputs = {
        "the training rows": cache.of_rows(data.raw["train"], data.raw["train"].column_names),
        "the model's weights": cache.of_tensors(
            {name: value.flatten()[:SOME] for name, value in source.state_dict().items()}
        ),
    }

    def state() -> dict[str, Any] | None:
        if not resume:
            return None
        with accelerator.main_process_first():  # it moves damaged checkpoints aside
            return output.restore(folder, asked, processes, say, inputs)

    outcome = carry_out(
        Work(
            model=model,
            passes=passes,
            task=data.task,
            rows=rows,
            train=recipe.train,
            evaluation=recipe.eval,
            accelerator=accelerator,
            raw=data.raw,
            processor=processor,
            source=source if recipe.student else None,
            teacher=teacher,
            folder=folder,
            dtype=dtype,
            identity=output.identity(asked, processes, inputs),
            state=state(),
            progress=progress,
        )
    )
    report = Report(
        cook=cook.__version__,
        created=environment.now(),
        recipe={"name": asked.name, "digest": asked.digest},
        model=_model(recipe, data.task.auto_class, source, outcome),
        passes=pass_rows(passes, outcome),
        train=outcome.train,
        environment=environment.describe(
            accelerator.device, seed=recipe.train.seed, precision=recipe.train.precision, processes=processes
        ),
    )
    for tracker in accelerator.trackers:
        tracker.finish()
    if accelerator.is_main_process:
        assert outcome.sample is not None
        deliver(
            recipe,
            asked,
            data.task.auto_class,
            partial(load_model, recipe, data, silent),
            report,
            model,
            outcome.processor,
            outcome.sample,
            dtype=dtype,
            force=force,
        )
        shutil.rmtree(folder.parent, ignore_errors=True)
        say(f"written to {recipe.output.path}")
    accelerator.wait_for_everyone()
    return report


def _check_sections(recipe: Recipe) -> None:
    for section in ("model", "data", "train", "output"):
        if getattr(recipe, section) is None:
            raise CookError(
                f"the recipe has no {section} section",
                where=recipe.name,
                hint="`cook run` needs model, data, train and output; cook.apply takes passes alone",
            )


def _model(recipe: Recipe, auto_class: str, source: PreTrainedModel, outcome: Outcome) -> Model:
    return Model(
        name=recipe.model.path or f"{source.config.model_type} from a config",
        student=student(recipe),
        teachers=[each.path for each in recipe.teachers],
        before=state(outcome.before),
        after=state(outcome.after),
        source_bytes=load.origin_of(source).bytes,
        float32_bytes=4 * outcome.before["parameters"],
        auto_class=auto_class,
    )
