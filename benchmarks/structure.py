"""What removing heads and neurons gives: time, size, and how much each criterion costs in accuracy.

    python -m benchmarks.structure speed --model MODEL
    python -m benchmarks.structure budget --model MODEL
    python -m benchmarks.structure criteria --model MODEL --train train.tsv --validation validation.tsv

`speed` times the model beside the same one with half its heads and half its neurons, in turns, with memory as
glibc happens to keep it and with all of it kept; `budget` asks for shares of the time and measures what came
of it, as the table of times does, with all of it kept. `criteria` removes shares of heads, neurons or (with
prune.units) of multiply-accumulates at once, without any training, by each kind of importance and over
several samples of examples or draws (random), and evaluates what is left.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import random
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import cook
from benchmarks.pairs import machine, measure, ratio
from cook.model.probe.measure import macs, tally
from cook.model.probe.memory import kept

BATCHES = (1, 32)
LENGTHS = (64, 128)
MEMORY: dict[str, Callable[[], AbstractContextManager[None]]] = {"as it comes": nullcontext, "kept": kept}


def load(path: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()


def halved(model: Any, share: float = 0.5) -> Any:
    """A copy without a share of each layer's heads and neurons; which ones does not matter for its speed."""
    options = {"sparsity": share, "importance": "magnitude", "scope": "layer"}
    config = {"version": 1, "passes": [{"prune.heads": options}, {"prune.neurons": options}]}
    return cook.apply(copy.deepcopy(model), config).model.eval()


@torch.inference_mode()
def forward(model: Any, batch: dict[str, torch.Tensor]) -> None:
    model(**batch)


def speed(args: argparse.Namespace) -> None:
    """The table of times, and what is left of multiply-accumulates and bytes."""
    whole = load(args.model)
    half = halved(whole)
    print(machine())
    before, after = tally(whole), tally(half)
    print(f"parameters {after.parameters / before.parameters:.3f}, bytes {after.bytes / before.bytes:.3f}")
    print("| batch x tokens | memory | MACs left | whole / half | spread | control |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for memory, size in itertools.product(MEMORY, BATCHES):
        for length in LENGTHS:
            tokens = torch.randint(1000, 2000, (size, length), generator=torch.Generator().manual_seed(0))
            batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            rivals = {"whole": whole, "half": half, "again": whole}
            calls = {name: partial(forward, model, batch) for name, model in rivals.items()}
            with MEMORY[memory]():
                seconds = measure(calls, rounds=args.rounds)
            found, control = (
                ratio(seconds["whole"], seconds["half"]),
                ratio(seconds["whole"], seconds["again"]),
            )
            left = macs(half, batch) / macs(whole, batch)
            interval = f"{found.middle:.2f} [{found.low:.2f}, {found.high:.2f}] | {found.spread:.2f}"
            print(
                f"| {size} x {length} | {memory} | {left:.3f} | {interval} | {control.middle:.2f} |",
                flush=True,
            )


def budget(args: argparse.Namespace) -> None:
    """What was asked of the time, what the table foretold, and what was measured."""
    whole = load(args.model)
    print(machine())
    print("| batch x tokens | asked | by the table | by the pass | measured | spread |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for size in BATCHES:
        tokens = torch.randint(1000, 2000, (size, LENGTHS[0]))
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        for share in args.shares:
            goal = {"latency": share, "device": "cpu", "batch": size}
            item = {"prune.units": {"budget": goal, "importance": "magnitude"}}
            result = cook.apply(copy.deepcopy(whole), {"version": 1, "passes": [item]}, calibration=[batch])
            facts = result.report.passes[0].facts
            calls = {"whole": partial(forward, whole, batch), "left": partial(forward, result.model, batch)}
            with kept():
                seconds = measure(calls, rounds=args.rounds)
            found = ratio(seconds["left"], seconds["whole"])
            interval = f"{found.middle:.3f} [{found.low:.3f}, {found.high:.3f}] | {found.spread:.3f}"
            told = f"{facts['foretold']:.3f} | {facts['reached']:.3f}"
            print(f"| {size} x {LENGTHS[0]} | {share:g} | {told} | {interval} |", flush=True)


def sample(args: argparse.Namespace, tokenizer: Any, seed: int) -> list[dict[str, torch.Tensor]]:
    """Batches of training rows, drawn with a seed."""
    with open(args.train, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    drawn = random.Random(seed).sample(rows, args.rows)
    batches = []
    for start in range(0, len(drawn), 32):
        some = drawn[start : start + 32]
        batch = tokenizer([row[args.text] for row in some], padding=True, return_tensors="pt")
        batches.append({**batch, "labels": torch.tensor([int(row[args.label]) for row in some])})
    return batches


def criteria(args: argparse.Namespace) -> None:
    """Accuracy after removal at once, by criterion."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with open(args.validation, encoding="utf-8", newline="") as file:
        rows = {"validation": list(csv.DictReader(file, delimiter="\t"))}
    for row in rows["validation"]:
        row[args.label] = int(row[args.label])
    data = {"text": args.text, "label": args.label}
    print(f"| pass | share | {' | '.join(args.importance)} |")
    print(f"| --- | ---: | {' | '.join('---:' for _ in args.importance)} |")
    for name in args.passes:
        for share in args.shares:
            cells = []
            for kind in args.importance:
                seeds = args.seeds if kind != "magnitude" else args.seeds[:1]
                found = []
                for seed in seeds:
                    options = {
                        "importance": kind.removesuffix("-normalized"),
                        "seed": seed,
                        "rows": args.rows,
                    }
                    if kind.endswith("-normalized"):
                        options["normalize"] = True
                    goal = {"budget": {"macs": 1 - share}} if name == "prune.units" else {"sparsity": share}
                    config = {
                        "version": 1,
                        "model": {"path": args.model, "task": "text-classification"},
                        "data": data,
                        "passes": [{name: {**options, **goal}}],
                    }
                    report = cook.apply(
                        load(args.model),
                        config,
                        data=rows,
                        calibration=sample(args, tokenizer, seed),
                        tokenizer=tokenizer,
                    ).report
                    found.append(report.model.after.metrics["accuracy"])
                spread = f" ({min(found):.4f} to {max(found):.4f})" if len(found) > 1 else ""
                cells.append(f"{statistics.fmean(found):.4f}{spread}")
            print(f"| `{name}` | {share:.0%} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("speed")
    one.add_argument("--rounds", type=int, default=30)
    one.set_defaults(run=speed)
    goal = verbs.add_parser("budget")
    goal.add_argument("--rounds", type=int, default=30)
    goal.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.5, 0.35])
    goal.set_defaults(run=budget)
    other = verbs.add_parser("criteria")
    other.add_argument("--train", required=True)
    other.add_argument("--validation", required=True)
    other.add_argument("--text", default="sentence")
    other.add_argument("--label", default="label")
    other.add_argument("--passes", nargs="+", default=["prune.heads", "prune.neurons"])
    other.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5])
    other.add_argument("--importance", nargs="+", default=["gradient", "magnitude", "random"])
    other.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    other.add_argument("--rows", type=int, default=512)
    other.set_defaults(run=criteria)
    for each in (one, goal, other):
        each.add_argument("--model", required=True)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
