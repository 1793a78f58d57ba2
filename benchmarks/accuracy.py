"""The accuracy of a recipe over several seeds, against the model that it starts from.

    python -m benchmarks.accuracy recipes/sst2.yaml --seeds 0 1 2 --parallel 3 --out OUT \
        --set model.path=MODEL --set data.train=train.tsv --set data.validation=validation.tsv

Each seed is a `cook run` of its own; the last checkpoint counts. The source and every result then predict
the same validation rows, and the difference in accuracy is told with the 95 % interval of a bootstrap over
rows: the same rows of both models are drawn together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cook.pipeline.evaluate import open_folder
from cook.recipe import load_recipe
from cook.report import Report
from cook.train.evaluate import predict

DRAWS = 10_000


def correct(folder: str, recipe: str, overrides: Sequence[str]) -> np.ndarray:
    """Whether each validation row is predicted right: bool [rows]."""
    opened = open_folder(folder, recipe, overrides)
    assert opened.task is not None
    device = opened.accelerator.device
    rows = opened.rows["validation"]
    found, _ = predict(opened.model.to(device), rows, opened.task, batch_size=64, device=device)
    return (found["predicted"] == found["labels"]).numpy()


def interval(before: np.ndarray, after: np.ndarray, draws: int = DRAWS) -> tuple[float, float]:
    """The 95 % bootstrap interval of the difference in accuracy, rows drawn in pairs.

    Args:
        before, after: bool [rows], or [seeds, rows] for `after`: its mean over seeds counts.
    """
    difference = np.atleast_2d(after).mean(0) - before
    source = np.random.default_rng(0)
    rows = source.integers(0, len(difference), (draws, len(difference)))
    low, high = np.percentile(difference[rows].mean(1), [2.5, 97.5])
    return float(low), float(high)


def run(recipe: str, out: Path, seed: int, overrides: Sequence[str], gpu: int | None = None) -> Path:
    """One `cook run` in a process of its own, on one GPU if it is told which; skipped when it is finished."""
    folder = out / f"seed-{seed}"
    chosen = [*overrides, f"train.seed={seed}", f"output.path={folder}"]
    flags = [part for each in chosen for part in ("--set", each)]
    command = [sys.executable, "-m", "cook", "run", recipe, "--quiet", "--resume", *flags]
    place = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    subprocess.run(command, check=True, env={**os.environ, **place})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.parallel) as pool:
        folders = list(pool.map(lambda seed: run(args.recipe, args.out, seed, args.overrides), args.seeds))
    source = load_recipe(args.recipe, args.overrides).model.path
    before = correct(str(source), args.recipe, args.overrides)
    after = np.stack([correct(str(folder), args.recipe, args.overrides) for folder in folders])
    print("| seed | accuracy | difference | 95 % of rows | sparsity | bytes |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for seed, folder, right in zip(args.seeds, folders, after, strict=True):
        state = Report.read(folder).model.after
        low, high = interval(before, right)
        rows.append({"seed": seed, "accuracy": float(right.mean()), "low": low, "high": high})
        print(
            f"| {seed} | {right.mean():.4f} | {right.mean() - before.mean():+.4f} "
            f"| {low:+.4f} to {high:+.4f} "
            f"| {state.sparsity:.4f} | {state.bytes:,} |"
        )
    low, high = interval(before, after)
    means = after.mean(1)
    print(
        f"source {before.mean():.4f}; mean {means.mean():.4f}, range {means.min():.4f} to {means.max():.4f}, "
        f"difference {means.mean() - before.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
    )
    summary = {
        "source": float(before.mean()),
        "mean": float(means.mean()),
        "low": low,
        "high": high,
        "rows": rows,
    }
    (args.out / "accuracy.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
