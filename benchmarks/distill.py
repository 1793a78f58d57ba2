"""What a step of distillation costs in cook, against the same maths written by hand.

    python -m benchmarks.distill
    python -m benchmarks.distill --cache

A BERT of 3 layers learns from one of 6, both of width 384 and with random weights, in batches of 32
sequences of 64 tokens: once in cook's loop with a pass, once in a plain loop of torch with the losses of
`benchmarks/distill_by_hand.py` and the same optimizer, clipping and schedule, on the same batches in the
same order. Each pair takes turns. Before anything is timed, both have to give the same losses and gradients
from the same weights, on padded sequences and with dropout.

With `--cache` it is `distill.logits` with a cached teacher, in epochs after the first, against cook's loop
without a teacher.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from benchmarks import loop
from benchmarks.distill_by_hand import METHODS, STUDENT, TEACHER, ByHand, Losses
from benchmarks.pairs import machine, measure, ratio, table
from benchmarks.turns import Loop as Turns
from cook.pipeline.inputs import make_passes
from cook.recipe import load_recipe
from cook.say import silent
from cook.session import Session
from cook.teacher.cached import CachedTeacher, fill
from cook.teacher.teacher import Named

BAR = 1.05
ROUNDS = 60
AGAIN = "by hand, again"
CACHE_BAR = 1.10
EPOCH = 32
"""Batches of an epoch with the cache."""


def models() -> tuple[BertForSequenceClassification, BertForSequenceClassification]:
    """Student and teacher."""
    return loop.model(STUDENT), loop.model(TEACHER, seed=1)


def compressed(name: str, pause: Callable[[], None]) -> None:
    """The loop of cook with one pass."""
    student, teacher = models()
    loop.compressed(pause, [{name: METHODS[name].options}], student=student, teacher=teacher)


def by_hand(name: str, pause: Callable[[], None]) -> None:
    """The plain loop with the same losses."""
    student, teacher = models()
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    trained = ByHand(name, student.train(), teacher)
    loop.stepped(pause, trained, lambda batch: torch.stack(list(trained(batch).values())).sum())


def agreement(name: str) -> tuple[dict[str, float], dict[str, float], float]:
    """The losses of cook's pass, those by hand, and how far their gradients are apart, of their length."""
    recipe = load_recipe({"version": 1, "passes": [{name: METHODS[name].options}]}, partial=True)
    told: list[dict[str, float]] = []
    gradients = []

    def note(terms: Losses, trained: nn.Module) -> None:
        found = torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(trained.parameters()))
        gradients.append(torch.cat([each.flatten() for each in found]))
        told.append({name: value.item() for name, value in terms.items()})

    student, teacher = models()
    for parameter in (*student.parameters(), *teacher.parameters()):
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)  # or some losses would be close to 0
    with Session(make_passes(recipe), student.train(), total_steps=1, teacher=teacher) as session:
        torch.manual_seed(0)
        note(session.module(padded_batch()), session.module)
    trained = ByHand(name, student, teacher)
    torch.manual_seed(0)
    note(trained(padded_batch()), trained)
    ours, theirs = gradients
    return told[0], told[1], float((ours - theirs).norm() / theirs.norm())


def padded_batch() -> dict[str, Tensor]:
    """A few short sequences of different lengths."""
    rows = [loop.Examples()[index] for index in range(4)]
    made: dict[str, Tensor] = torch.utils.data.default_collate(rows)
    made = {name: value[:, :12] if value.dim() == 2 else value for name, value in made.items()}
    for row in range(len(rows)):
        made["attention_mask"][row, 12 - 3 * row :] = 0
    return made


def check(name: str) -> None:
    """Raise SystemExit unless both sides do the same."""
    ours, theirs, apart = agreement(name)
    same = ours.keys() == theirs.keys() and all(
        math.isclose(ours[term], theirs[term], rel_tol=1e-5, abs_tol=1e-7) for term in ours
    )
    if not same or apart > 1e-4:
        raise SystemExit(f"{name}: cook says {ours}, by hand it is {theirs}, gradients {apart:.1e} apart")
    values = ", ".join(f"{term} {value:.6g}" for term, value in ours.items())
    print(f"{name}: {values}; gradients {apart:.1e} apart")


class Numbered(loop.Sequential):
    """Hands out the examples that are asked for, the same every epoch."""

    def __init__(self, pause: Callable[[], None]):
        super().__init__(pause, None)
        self.say = silent

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        examples = loop.Examples()
        return loop.collate(self._pause, [examples[row["row"]] for row in rows])


def cached(pause: Callable[[], None]) -> None:
    """Learning the logits of a teacher that ran once, before the first step."""
    student, teacher = models()
    over_epochs(pause, student, [{"distill.logits": METHODS["distill.logits"].options}], teacher)


def plain(pause: Callable[[], None]) -> None:
    """The same student without a teacher."""
    over_epochs(pause, models()[0])


def over_epochs(
    pause: Callable[[], None],
    student: BertForSequenceClassification,
    passes: list[dict[str, Any]] | None = None,
    teacher: BertForSequenceClassification | None = None,
) -> None:
    """The loop of cook over a small data set again and again."""
    rows = Dataset.from_dict({"row": range(EPOCH * loop.BATCH)})

    def ready(session: Session, accelerator: Accelerator) -> None:
        fill(session.teachers, Numbered(lambda: None), rows, accelerator, batch_size=loop.BATCH)

    taught = None if teacher is None else [Named(teacher, kind=CachedTeacher)]
    task = Numbered(pause)
    loop.compressed(pause, passes or [], student=student, teacher=taught, task=task, rows=rows, ready=ready)


def timed(loops: Mapping[str, Callable[..., None]], rounds: int, bar: float, *, warm_up: int = 5) -> bool:
    """Time some loops, print them, and tell whether the first takes at most `bar` times the second."""
    with ExitStack() as stack:
        rivals = {who: stack.enter_context(Turns(run)) for who, run in loops.items()}
        seconds = measure(rivals, rounds=rounds, warm_up=warm_up)
    (name, mine), (against, theirs), *control = seconds.items()
    print(f"\n{table(seconds)}\n")
    for again, times in control:
        print(f"{again} / {against}: {ratio(times, theirs)}")
    found = ratio(mine, theirs)
    print(f"{name} / {against}: {found} - {'within' if found.within(bar) else 'OVER'} {bar:.2f}", flush=True)
    return found.within(bar)


def main() -> None:
    """Check that both sides agree, time them, and exit with 1 if a method is over its bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="steps of each (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--cache", action="store_true", help="time a cached teacher instead")
    args = parser.parse_args()
    print(machine(), end="\n\n")
    if args.cache:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["COOK_CACHE"] = folder  # the processes inherit it
            loops = {"a cached teacher": cached, "no teacher": plain, "no teacher, again": plain}
            raise SystemExit(not timed(loops, args.rounds, CACHE_BAR, warm_up=EPOCH))
    for name in args.methods:
        check(name)
    within = []
    for name in args.methods:
        loops = {name: partial(compressed, name), "by hand": partial(by_hand, name)}
        if name == args.methods[0]:
            loops[AGAIN] = partial(by_hand, name)
        within.append(timed(loops, args.rounds, BAR))
    raise SystemExit(not all(within))


if __name__ == "__main__":
    main()
