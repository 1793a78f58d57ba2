"""The same distillation by TextBrewer and by cook: what a step costs, and what comes of it.

    pip install --no-deps textbrewer
    python -m benchmarks.textbrewer --teacher FOLDER --train train.tsv --validation validation.tsv \
        --text sentence1 sentence2 --epochs 5

The teacher is the folder of a classifier that was fine-tuned on the table (`cook run` with a recipe without
passes makes one); the student has some of its layers. Both sides train the same student from the same
weights with the same AdamW, schedule and clipping, on the same batches in the same order, to learn labels,
logits (cross-entropy with a temperature) and hidden states (mean square), in equal parts:

- TextBrewer's cross-entropy lacks the factor T^2 and keeps the teacher's entropy: its weight is T^2.
- Its hidden states add up over layers, cook's are a mean: each has the weight 1 / layers.
- It averages hidden states over all tokens of a batch, cook over the tokens of each example and then over
  examples. They are equal where no token is padding, which is where both are compared before the rest; else
  long examples weigh more there. Neither can be told to do the other.

TextBrewer 0.2.1 runs beside transformers 5 without changes: the adaptor, which is the user's code anyway,
reads the outputs by name. It imports tensorboard, though nothing is written to it here, and writes one file
of weights when it ends. Dropout is drawn anew by each side, so accuracies are to be compared over seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.pairs import machine, measure, ratio, table
from benchmarks.textbrewer_sides import (
    Setting,
    TaskRun,
    brewing,
    by_cook,
    by_textbrewer,
    ordered,
    prepared,
    textbrewer,
)
from benchmarks.turns import Loop as Turns
from cook.pipeline.inputs import make_passes
from cook.session import Session
from cook.train.evaluate import evaluate
from cook.train.seeds import seed_everything

ROUNDS = 60
CLOSE = 1e-4


def agreement(setting: Setting) -> tuple[dict[str, float], dict[str, float], float]:
    """The losses of the first batch, cut to where it has no padding: cook's and TextBrewer's in cook's terms.

    Returns:
        Both, and how far the gradients of their sums are apart, of their length.
    """
    task_run = prepared(setting)
    first = next(ordered(task_run))
    shortest = int(first["attention_mask"].sum(1).min())
    batch = {name: value[:, :shortest] if value.dim() == 2 else value for name, value in first.items()}
    parameters = list(task_run.student.parameters())
    gradients = []

    def note(total: Tensor) -> None:
        found = torch.autograd.grad(total, parameters, retain_graph=True)
        gradients.append(torch.cat([each.flatten() for each in found]))

    task_run.student.train()
    passes = make_passes(task_run.recipe)
    with Session(passes, task_run.student, total_steps=1, teacher=task_run.teacher) as session:
        seed_everything(setting.seed)
        terms = session.module({name: value.to(task_run.student.device) for name, value in batch.items()})
        note(torch.stack(list(terms.values())).sum())
    with tempfile.TemporaryDirectory() as folder, (distiller := brewing(setting, task_run, folder)):
        seed_everything(setting.seed)
        total, losses = distiller.train_on_batch(batch, {"output_hidden_states": True})
        note(total)
        seen = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            wanted = task_run.teacher(**seen).logits / setting.temperature
    entropy = -(wanted.softmax(-1) * wanted.log_softmax(-1)).sum(-1).mean()
    hidden = [value for name, value in losses.items() if name.startswith("unweighted_hidden")]
    theirs = {
        "task": losses["unweighted_hard_label_loss"],
        "logits": setting.temperature**2 * (losses["unweighted_kd_loss"] - entropy),
        "hidden": sum(hidden) / len(hidden),
    }
    apart = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    return (
        {name: value.item() for name, value in terms.items()},
        {name: value.item() for name, value in theirs.items()},
        apart,
    )


def accuracy(run: Callable[..., TaskRun], setting: Setting) -> float:
    """Of the student on the validation rows, after a whole run."""
    task_run = run(setting, lambda: None)
    device = task_run.student.device
    found = evaluate(
        task_run.student, task_run.rows["validation"], task_run.task, batch_size=64, device=device
    )
    return found["accuracy"]


SIDES: dict[str, Callable[..., TaskRun]] = {"cook": by_cook, "TextBrewer": by_textbrewer}


def main() -> None:
    """Check that both sides agree, time them in turns, train them to the end."""
    default = Setting("", "", "", ())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("teacher", "train", "validation"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--text", nargs="+", default=["sentence"], help="one column, or two for pairs")
    parser.add_argument("--label", default=default.label)
    parser.add_argument("--layers", type=int, nargs="+", default=default.layers)
    for name in ("max_length", "epochs", "batch_size", "learning_rate", "temperature"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timed steps of each; 0 for none")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="whole runs; none for none")
    given = vars(parser.parse_args())
    rounds, seeds = given.pop("rounds"), given.pop("seeds")
    textbrewer()  # or say at once that it is not there
    chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    setting = Setting(**chosen)
    ours, theirs, apart = agreement(setting)
    print(machine(), f"first batch without padding: cook {ours}, TextBrewer {theirs}", sep="\n\n")
    if apart > CLOSE or any(
        not math.isclose(ours[name], theirs[name], rel_tol=CLOSE, abs_tol=1e-5) for name in ours
    ):
        raise SystemExit(f"they do not do the same: gradients are {apart:.1e} apart")
    if rounds:
        endless = replace(setting, epochs=1000)  # or the loops could end before the clock does
        with ExitStack() as stack:
            turns = {who: stack.enter_context(Turns(partial(run, endless))) for who, run in SIDES.items()}
            seconds = measure(turns, rounds=rounds)
        print(f"\n{table(seconds)}\n\ncook / TextBrewer: {ratio(*seconds.values())}", flush=True)
    for who, run in SIDES.items() if seeds else ():
        found = [accuracy(run, replace(setting, seed=seed)) for seed in seeds]
        told = ", ".join(f"{each:.4f}" for each in found)
        print(f"{who}: accuracy {statistics.fmean(found):.4f} ({told})", flush=True)


if __name__ == "__main__":
    main()
