"""Passes taken through whole runs in small: what the shared test checks for every one of them.

A case is a family of tiny models and a few passes with one of their examples. It is run once without a
break, and once stopped twice and continued each time in a new session and loop.
"""

from __future__ import annotations

import copy
import itertools
import signal
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset, Features, Image, Value
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from cook.errors import Interrupted
from cook.model.hub import folder
from cook.model.probe.equivalence import outputs
from cook.passes import Effect, Pass, registered
from cook.pipeline import output
from cook.pipeline.execute import RunContext, RunResult, execute
from cook.pipeline.inputs import load_model, load_teacher, make_passes, read_data
from cook.pipeline.plan import plan_passes
from cook.recipe import Recipe, load_recipe
from cook.train import checkpoint
from cook.train.loop import Loop
from tests.helpers import tiny
from tests.helpers.traces import hooks, hooks_of

ROWS, BATCH, STEPS = 32, 8, 6
"""An epoch and a half."""
STOPS = (3, 5)
"""Steps after which a run is interrupted: in mid-epoch, inside the windows and behind the ends of some."""
SPOKEN = tiny.WORDS[9:-1]
"""Words of the tables besides those that say the label: two of the vocabulary are never used."""
KEPT = 5
"""The step whose checkpoints are compared: masks and states of passes are gone when a run has finished."""
TASKS = {"vit": "image-classification"}


@dataclass(frozen=True)
class Case:
    """A family, and passes by name, each with the number of one of its examples."""

    family: str
    passes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        names = [f"{name}.{number}" if number else name for name, number in self.passes]
        return "-".join([self.family, *names])


def serves(name: str, family: str) -> bool:
    """Whether the pass is for models of this family."""
    return registered()[name].reads is None or family not in TASKS


def cases(*, whole: bool = False) -> list[Case]:
    """The cases. A family *in rotation* is the next one for each case, of those that its passes serve.

    Alone: the first example of every pass over every family, its others in rotation. In pairs: every
    ordered pair, in rotation, of which one at least changes the model. Passes that only add losses meet in
    their terms: each twice, in rotation, and all of them in one run over every family.

    Args:
        whole: every example and every ordered pair over every family.
    """
    known = registered()
    rotation, others = itertools.cycle(tiny.FAMILIES), itertools.cycle(tiny.FAMILIES)
    observers = [name for name, cls in known.items() if cls.phase == "observe"]

    def over(everywhere: bool, *passes: tuple[str, int]) -> list[Case]:
        served = [family for family in tiny.FAMILIES if all(serves(name, family) for name, _ in passes)]
        turns = rotation if len(passes) > 1 or passes[0][0] in observers else others
        chosen = served if everywhere else [next(family for family in turns if family in served)]
        return [Case(family, passes) for family in chosen]

    found = over(True, *((name, 0) for name in observers))
    for name, cls in known.items():
        for number in range(len(cls.examples)):
            found += over(whole or number == 0, (name, number))
    for first, second in itertools.product(known, repeat=2):
        if whole or first == second or not {first, second} <= set(observers):
            found += over(whole, (first, 0), (second, 0))
    return found


def compressed(case: Case) -> bool:
    """Whether a case is compressed where not all are: passes that both change shapes meet in either order, of
    others one of the two orders, by turns.
    """
    known = list(registered())
    phases = [registered()[name].phase for name, _ in case.passes]
    first, last = (known.index(case.passes[end][0]) for end in (0, -1))
    if len(phases) != 2 or first == last or set(phases) <= {"shape", "structure"}:
        return True
    return (first < last) == ((first + last) % 2 == 0)


def steps(case: Case, *, trains: bool = True) -> list[dict[str, Any]]:
    """The passes as a recipe writes them; in a run they begin late, so that the start is seen too."""
    known = registered()
    late = {name: {"start": 1} if trains and "start" in cls.schema() else {} for name, cls in known.items()}
    return [{name: {**late[name], **known[name].examples[number]}} for name, number in case.passes]


def wants(case: Case) -> set[str]:
    """All that the passes of a case need besides the model, with the options that they have."""
    made = make_passes(load_recipe({"version": 1, "passes": steps(case)}, partial=True))
    return set().union(*(each.wants() for each in made))


class Resources:
    """Model folders and data files, made once each.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self._models: dict[str, Path] = {}

    @cached_property
    def texts(self) -> tuple[Path, Path]:
        """Tables to train and to validate on."""
        return (
            tiny.table(self.root / "train.tsv", ROWS, rest=SPOKEN),
            tiny.table(self.root / "validation.tsv", BATCH, seed=1, rest=SPOKEN),
        )

    @cached_property
    def images(self) -> tuple[Path, Path]:
        """The same of random images, 8x8 in greys."""
        source = np.random.RandomState(0)
        features = Features({"image": Image(), "label": Value("string")})
        files = self.root / "train.parquet", self.root / "validation.parquet"
        for file, rows in zip(files, (ROWS, BATCH), strict=True):
            pixels = source.randint(0, 256, (rows, 8, 8)).astype(np.uint8)
            labels = [("negative", "positive")[row % 2] for row in range(rows)]
            table = Dataset.from_dict({"image": list(pixels), "label": labels}, features=features)
            table.to_parquet(file)
        return files

    def model(self, family: str) -> Path:
        """The folder of a tiny model."""
        if family not in self._models:
            self._models[family] = tiny.folder(self.root / family, family)
        return self._models[family]

    def recipe(self, case: Case) -> Recipe:
        """A recipe for the case; checkpoints are written at KEPT, whatever else happens."""
        train, validation = self.images if case.family == "vit" else self.texts
        task = TASKS.get(case.family, "text-classification")
        teacher = "teacher" in wants(case)
        return load_recipe(
            {
                "version": 1,
                "model": {"path": str(self.model(case.family)), "task": task},
                **({"teacher": "self"} if teacher else {}),
                "data": {"train": str(train), "validation": str(validation)},
                "train": {
                    "steps": STEPS,
                    "batch_size": BATCH,
                    "accumulate": 2,
                    "learning_rate": 0.01,
                    "save_every": KEPT,
                    "log_every": 2,
                    "device": "cpu",
                },
                "passes": steps(case),
                "output": {"path": str(self.root / "out")},
            }
        )


@dataclass
class Run:
    """One run that has ended."""

    model: PreTrainedModel
    passes: list[Pass]
    outcome: RunResult
    loop: Loop


def run(recipe: Recipe, checkpoints: Path, *, stop: int | None = None) -> Run:
    """Load everything, go on from the newest checkpoint if there is one, and finish.

    Args:
        stop: a signal comes in this step, counted from where the run goes on.

    Raises:
        Interrupted: with `stop`; no hook is left then (asserted).
    """
    data = read_data(recipe, _silent)
    model = load_model(recipe, data, _silent)
    processor = data.task.plain_processor() if data.task.processor == "image" else tiny.tokenizer()
    passes = make_passes(recipe)
    loops: list[Loop] = []
    before = hooks(model)

    def begun(loop: Loop) -> None:
        loops.append(loop)
        if stop is not None:
            _signal_in(loop.optimizer, stop)

    try:
        outcome = execute(
            RunContext(
                model=model,
                passes=passes,
                task=data.task,
                rows={split: data.task.prepare(raw, processor) for split, raw in data.raw.items()},
                train=recipe.train,
                evaluation=recipe.eval,
                accelerator=Accelerator(cpu=True),
                raw=data.raw,
                processor=processor,
                teacher=load_teacher(recipe, model, data, processor, _silent),
                folder=checkpoints,
                identity=output.identity(recipe, 1),
                state=output.restore(checkpoints, recipe, 1, _silent),
                begun=begun,
                progress=False,
            )
        )
    finally:
        if loops:
            assert hooks(model) == before
            assert hooks(loops[0].session.module) == before
            assert not hooks_of(loops[0].optimizer)
            assert not len(loops[0].session.hooks)
    return Run(model, passes, outcome, loops[0])


def _signal_in(optimizer: Optimizer, step: int) -> None:
    """Ctrl-C while the optimizer makes its `step`th step."""
    count = itertools.count(1)

    def hook(*_: Any) -> None:
        if next(count) == step:
            handle.remove()
            signal.raise_signal(signal.SIGINT)

    handle = optimizer.register_step_post_hook(hook)


@dataclass
class MatrixEntry:
    """What came of a case.

    Attributes:
        planned: what each pass said that it would do, and the model that the edits made, on meta.
        whole, resumed: the run without a break, and the last part of the one that was stopped.
        kept: of both, the checkpoint at KEPT.
        folder: the resumed model, saved.
        batch, expected: inputs, and what the model in memory gives for them.
    """

    case: Case
    planned: list[tuple[Pass, Effect]]
    meta: PreTrainedModel
    whole: Run
    resumed: Run
    kept: tuple[dict[str, Any], dict[str, Any]]
    folder: Path
    batch: dict[str, Tensor]
    expected: dict[str, Tensor]


def cook(case: Case, resources: Resources, scratch: Path) -> MatrixEntry:
    """Take a case through everything.

    Raises:
        CookError: the plan refuses it.
    """
    recipe = resources.recipe(case)
    meta = load_model(recipe, read_data(recipe, _silent), _silent, meta=True)
    teachers = [copy.deepcopy(meta)] if recipe.teacher else []
    planned = plan_passes(meta, make_passes(recipe), teachers)
    whole = run(recipe, scratch / "whole")
    done = 0
    for step in STOPS:
        try:
            run(recipe, scratch / "stopped", stop=step - done)
        except Interrupted:
            done = step
            assert (scratch / "stopped" / f"step-{step}").is_dir()
        else:
            raise AssertionError("the signal did not stop the run")
    resumed = run(recipe, scratch / "stopped")
    first, second = (checkpoint.load(scratch / name / f"step-{KEPT}") for name in ("whole", "stopped"))
    batch = {name: value for name, value in tiny.batch(case.family).items() if name != "labels"}
    if (numbers := resumed.outcome.token_id_map) is not None:
        batch = numbers(batch)
    folder.save(resumed.model, scratch / "model")
    expected = outputs(resumed.model, batch)
    return MatrixEntry(
        case, planned, meta, whole, resumed, (first, second), scratch / "model", batch, expected
    )


def _silent(line: str) -> None:
    """Say nothing."""
