"""Low rank: what each method leaves of a model without any training, and what factorising costs.

    python -m benchmarks.lowrank rates --model MODEL --train train.tsv --validation validation.tsv
    python -m benchmarks.lowrank perplexity MODEL STORIES
    python -m benchmarks.lowrank recover MODEL STORIES
    python -m benchmarks.lowrank time

`rates` factorises the layers of a classifier at once, by each method, to shares of their parameters, the same
for all or spread, over several samples of examples, and evaluates what is left. `perplexity` does so with a
causal language model, for one rank after the other, and tells the perplexity a token of the last of STORIES,
a text with `<|endoftext|>` between them, which no pass has seen; `recover` does so for shares of the layers,
spread and even, and again after training with itself as its teacher. `time` takes the data-aware method
through an encoder of BERT-base's size and random weights, in a process of its own for each length of the
examples and each way to find ranks: seconds, what of it goes where, and the peak of memory beside the model's
own size.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import itertools
import json
import pstats
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

import cook
from benchmarks.oneshot import HELD_BACK, batches, perplexity
from benchmarks.pairs import machine
from benchmarks.structure import load, sample
from cook.data.calibration import given
from cook.lowrank.linear import LowRankLinear
from cook.pipeline.inputs import make_passes
from cook.recipe import load_recipe
from cook.session import Session

METHODS = ("data", "fisher", "svd")
PARTS = ("eigh", "linalg_qr", "_record", "statistics", "_advance", "throughout", "factors", "sensitivities")


def rates(args: argparse.Namespace) -> None:
    """Accuracy at once, by method, share and whether it is spread."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with open(args.validation, encoding="utf-8", newline="") as file:
        rows = {"validation": list(csv.DictReader(file, delimiter="\t"))}
    for row in rows["validation"]:
        row[args.label] = int(row[args.label])
    print(f"| share | ranks | {' | '.join(args.methods)} |")
    print(f"| ---: | --- | {' | '.join('---:' for _ in args.methods)} |")
    for share in args.shares:
        for spread in (False, True):
            cells = []
            for method in args.methods:
                found = []
                for seed in args.seeds[:1] if method == "svd" else args.seeds:
                    options = {"method": method, "parameters": share, "spread": spread, "rows": args.rows}
                    config = {
                        "version": 1,
                        "model": {"path": args.model, "task": "text-classification"},
                        "data": {"text": args.text, "label": args.label},
                        "passes": [{"lowrank.linear": options}],
                    }
                    report = cook.apply(
                        load(args.model),
                        config,
                        data=rows,
                        calibration=sample(args, tokenizer, seed),
                        tokenizer=tokenizer,
                    ).report
                    found.append(report.model.after.metrics["accuracy"])
                spread_of = f" ({min(found):.4f} to {max(found):.4f})" if len(found) > 1 else ""
                cells.append(f"{statistics.fmean(found):.4f}{spread_of}")
            print(f"| {share:.0%} | {'spread' if spread else 'even'} | {' | '.join(cells)} |", flush=True)


def sweep(args: argparse.Namespace) -> None:
    """Perplexity by rank and method."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    stories = [story.strip() for story in Path(args.stories).read_text("utf-8").split("<|endoftext|>")]
    held_back = batches(stories[-HELD_BACK:], tokenizer)
    sampled = batches(stories[: args.rows], tokenizer)
    for batch in sampled:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    print(f"dense: {perplexity(AutoModelForCausalLM.from_pretrained(args.model).eval(), held_back):.3f}")
    print(f"| rank | left of the layers | {' | '.join(args.methods)} |")
    print(f"| ---: | ---: | {' | '.join('---:' for _ in args.methods)} |")
    for rank in args.ranks:
        cells, left = [], 0.0
        for method in args.methods:
            model = AutoModelForCausalLM.from_pretrained(args.model).eval()
            options = {"method": method, "rank": rank, "rows": args.rows}
            passes = {"version": 1, "passes": [{"lowrank.linear": options}]}
            result = cook.apply(model, passes, calibration=sampled)
            left = result.report.passes[0].facts["share"]
            cells.append(f"{perplexity(model, held_back):.3f}")
        print(f"| {rank} | {left:.0%} | {' | '.join(cells)} |", flush=True)


def recover(args: argparse.Namespace) -> None:
    """Perplexity at once and after training, with ranks spread and even."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    stories = [story.strip() for story in Path(args.stories).read_text("utf-8").split("<|endoftext|>")]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held_back = [_on(device, batch) for batch in batches(stories[-HELD_BACK:], tokenizer)]
    print("| left | ranks | at once | trained |\n| ---: | --- | ---: | ---: |")
    for share, spread in itertools.product(args.shares, (True, False)):
        found = []
        for seed in args.seeds:
            sampled = batches(stories[seed * args.rows : (seed + 1) * args.rows], tokenizer)
            model: Any = AutoModelForCausalLM.from_pretrained(args.model)
            model.to(device).eval()
            passes: list[Any] = [
                {"lowrank.linear": {"parameters": share, "rows": args.rows, "spread": spread}},
                {"distill.logits": {"temperature": 1.0, "task_weight": 0.5, "weight": 0.5}},
            ]
            with cook.attach(
                model,
                {"version": 1, "passes": passes},
                total_steps=args.steps,
                teacher="self",
                calibration=sampled,
            ) as session:
                once = perplexity(model, held_back)
                _train(session, [story for story in stories[:-HELD_BACK] if story], tokenizer, seed)
            found.append((once, perplexity(model.eval(), held_back)))
        cells = [
            f"{statistics.fmean(each):.2f} ({min(each):.2f} to {max(each):.2f})"
            for each in zip(*found, strict=True)
        ]
        print(f"| {share:.0%} | {'spread' if spread else 'even'} | {' | '.join(cells)} |", flush=True)


def _train(session: Session, stories: list[str], tokenizer: Any, seed: int) -> None:
    """AdamW at 2e-3, warm after 20 steps and then linear to nothing, 32 stories a step."""
    torch.manual_seed(seed)
    draw, steps, device = random.Random(seed), session.total_steps, session.model.device
    session.place(device)
    session.module.to(device).train()
    optimizer = torch.optim.AdamW(session.module.parameters(), lr=2e-3)
    session.bind(optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / steps)
    )
    for step in range(steps):
        (batch,) = (_on(device, each) for each in batches(draw.sample(stories, 32), tokenizer, 32))
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        session.before_step(step)
        sum(session.module({**batch, "labels": labels}).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        session.after_step()
    session.finish()


def _on(device: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


def timed(args: argparse.Namespace) -> None:
    """Each length in a process of its own, so that each has a peak of its own."""
    if args.length is None:
        print(machine())
        for length, ranks in itertools.product(args.lengths, ("spread", "even")):
            command = [sys.executable, "-m", "benchmarks.lowrank", "time", "--length", str(length)]
            command += ["--rows", str(args.rows), "--share", str(args.share), "--ranks", ranks]
            subprocess.run(command, check=True)
        return
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = BertModel(BertConfig(), add_pooling_layer=False).eval()
    size = sum(each.numel() * each.element_size() for each in model.parameters())
    tokens = torch.randint(1000, 20000, (args.rows, args.length))
    examples = [{"input_ids": part} for part in tokens.split(32)]
    with torch.inference_mode():
        model(input_ids=tokens[:1])  # what is loaded at first use is no part of it
    options = {"parameters": args.share, "rows": args.rows, "spread": args.ranks == "spread"}
    recipe = {"version": 1, "passes": [{"lowrank.linear": options}]}
    passes = make_passes(load_recipe(recipe, partial=True))
    before = _peak()
    profile = cProfile.Profile()
    start = time.perf_counter()
    profile.enable()
    session = Session(passes, model, total_steps=0, calibration=given(examples))
    session.finish()
    profile.disable()
    seconds = time.perf_counter() - start
    assert isinstance(session.passes[0], LowRankLinear)
    where: dict[str, float] = {}
    for (_, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if part := next((each for each in PARTS if each in name), None):
            where[part] = where.get(part, 0.0) + round(cumulative, 1)
    told: dict[str, Any] = {
        "sequences": args.rows,
        "tokens": args.length,
        "ranks": args.ranks,
        "seconds": round(seconds, 1),
        "model_mb": round(size / 2**20),
        "growth_of_model": round((_peak() - before) / size, 2),
        "peak_of_model": round(_peak() / size, 2),
        "where": where,
    }
    print(json.dumps(told), flush=True)


def _peak() -> int:
    """The largest resident size that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("rates")
    one.add_argument("--model", required=True)
    one.add_argument("--train", required=True)
    one.add_argument("--validation", required=True)
    one.add_argument("--text", default="sentence")
    one.add_argument("--label", default="label")
    one.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.3])
    one.add_argument("--methods", nargs="+", default=list(METHODS))
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    one.add_argument("--rows", type=int, default=512)
    one.set_defaults(run=rates)
    two = verbs.add_parser("perplexity")
    two.add_argument("model")
    two.add_argument("stories")
    two.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 24, 28])
    two.add_argument("--methods", nargs="+", default=list(METHODS))
    two.add_argument("--rows", type=int, default=256)
    two.set_defaults(run=sweep)
    again = verbs.add_parser("recover")
    again.add_argument("model")
    again.add_argument("stories")
    again.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.7, 0.5, 0.3])
    again.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    again.add_argument("--rows", type=int, default=128)
    again.add_argument("--steps", type=int, default=400)
    again.set_defaults(run=recover)
    three = verbs.add_parser("time")
    three.add_argument("--lengths", type=int, nargs="+", default=[128, 64])
    three.add_argument("--length", type=int)
    three.add_argument("--ranks", choices=("spread", "even"), default="spread")
    three.add_argument("--rows", type=int, default=256)
    three.add_argument("--share", type=float, default=0.5)
    three.add_argument("--threads", type=int, default=2)
    three.set_defaults(run=timed)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
