"""Ways to teach a small student, side by side: each recipe over several seeds.

    python -m benchmarks.students recipes/distill/*.yaml --layers 1 3 5 --parallel 3 \\
        --set model.path=MODEL --set data.train=train.tsv --set data.validation=validation.tsv

Every run is a `cook run` of its own; one that is finished is not repeated. A recipe that trains on augmented
rows sees them all in an epoch, so mind the updates that are told when methods are compared: `--steps` gives
every recipe as many.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.accuracy import run
from cook.report import Report


def named(recipe: str) -> tuple[str, list[str]]:
    """The recipe's path and the changes of `PATH::KEY=VALUE::KEY=VALUE`, the form of a variant."""
    path, *changes = recipe.split("::")
    return path, changes


def row(name: str, reports: list[Report]) -> str:
    """One line of the table."""
    metric = [report.model.after.metrics["accuracy"] for report in reports]
    each = " ".join(f"{value:.4f}" for value in metric)
    train = reports[0].train or {}
    seconds = statistics.fmean((report.train or {})["seconds"] for report in reports)
    return (
        f"| {name} | {each} | **{statistics.fmean(metric):.4f}** | {min(metric):.4f} to {max(metric):.4f} "
        f"| {train.get('steps')} | {seconds:.0f} |"
    )


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", help="PATH, or PATH::KEY=VALUE::... for a variant of it")
    parser.add_argument("--layers", type=int, nargs="+", help="the layers that the student keeps")
    parser.add_argument("--steps", type=int, help="updates of every run, in the place of its epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("out/students"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    shared = list(args.overrides)
    if args.layers:
        shared.append(f"student.layers={json.dumps(args.layers)}")
    if args.steps:
        shared += ["train.epochs=null", f"train.steps={args.steps}"]
    jobs = {}
    gpus = itertools.cycle(range(torch.cuda.device_count()) or [None])
    for recipe in args.recipes:
        path, changes = named(recipe)
        name = " ".join([Path(path).stem, *changes])
        folder = args.out / name.translate(str.maketrans(" /[]{}:,\"'", "_" * 10))
        jobs[name] = [(path, folder, seed, [*shared, *changes], next(gpus)) for seed in args.seeds]
    with ThreadPoolExecutor(args.parallel) as pool:
        running = {name: [pool.submit(run, *job) for job in several] for name, several in jobs.items()}
        print("| recipe | seeds | mean | range | updates | seconds |")
        print("| --- | --- | ---: | --- | ---: | ---: |")
        for name, several in running.items():
            print(row(name, [Report.read(each.result()) for each in several]), flush=True)


if __name__ == "__main__":
    main()
