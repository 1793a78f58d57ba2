"""One-shot pruning: what the criteria leave of a language model, and what they cost beside llm-compressor.

    python -m benchmarks.oneshot quality MODEL STORIES
    python -m benchmarks.oneshot beside PYTHON

`quality` prunes MODEL, a causal language model, with examples of STORIES, a text with `<|endoftext|>` between
its stories, and tells the perplexity a token of the last ones, which no pass has seen. The calibration
examples are others for each seed.

`beside` times `benchmarks/oneshot_sides.py`: one Llama of random weights pruned by cook and, under another
interpreter, by llm-compressor, in turns and each in a process of its own. PYTHON is one that has it:

    python -m venv V && V/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import cook
from benchmarks.pairs import machine

METHODS = ("magnitude", "wanda", "sparsegpt")
SHAPES: dict[str, dict[str, Any]] = {"50 %": {"sparsity": 0.5}, "2:4": {"pattern": "2:4"}}
LENGTH, HELD_BACK, BATCH = 512, 200, 16
SIDES = Path(__file__).with_name("oneshot_sides.py")


def batches(stories: list[str], tokenizer: Any, size: int = BATCH) -> list[dict[str, Tensor]]:
    """Stories as the model takes them, padded at their end."""
    rows = [torch.tensor(tokenizer(story)["input_ids"][:LENGTH]) for story in stories]
    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids = pad_sequence(part, batch_first=True)
        lengths = torch.tensor([len(row) for row in part])
        found.append(
            {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
        )
    return found


@torch.no_grad()
def perplexity(model: PreTrainedModel, held_back: list[dict[str, Tensor]]) -> float:
    """Of each token after the first, all of them alike."""
    total, count = 0.0, 0
    for batch in held_back:
        valid = batch["attention_mask"][:, 1:].bool()
        logits = model(**batch).logits[:, :-1][valid].float()
        total += float(functional.cross_entropy(logits, batch["input_ids"][:, 1:][valid], reduction="sum"))
        count += int(valid.sum())
    return math.exp(total / count)


def quality(args: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    stories = [story.strip() for story in Path(args.stories).read_text("utf-8").split("<|endoftext|>")]
    held_back = batches(stories[-HELD_BACK:], tokenizer)
    print(f"dense: {perplexity(AutoModelForCausalLM.from_pretrained(args.model).eval(), held_back):.3f}")
    for shape, options in SHAPES.items():
        for method in METHODS:
            found = []
            for seed in range(1 if method == "magnitude" else args.seeds):
                model = AutoModelForCausalLM.from_pretrained(args.model).eval()
                sample = stories[seed * args.rows : (seed + 1) * args.rows]
                recipe = {"method": method, **options}
                if method != "magnitude":
                    recipe["rows"] = args.rows
                elif "sparsity" in options:
                    recipe["scope"] = "layer"
                passes = {"version": 1, "passes": [{"prune.weights": recipe}]}
                cook.apply(model, passes, calibration=batches(sample, tokenizer))
                found.append(perplexity(model, held_back))
            each = " ".join(f"{value:.3f}" for value in found)
            print(f"{shape} {method}: {statistics.mean(found):.3f} ({each})", flush=True)


def beside(args: argparse.Namespace) -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        told: dict[str, list[dict[str, Any]]] = {}
        subprocess.run([sys.executable, SIDES, "make", scratch], check=True)
        for method in args.methods:
            for turn in range(args.turns):
                for side, python in (("cook", sys.executable), ("llm-compressor", args.python)):
                    masks = f"{scratch}/{side}.pt"
                    done = subprocess.run(
                        [python, SIDES, side, scratch, method, masks], stdout=subprocess.PIPE, check=True
                    )
                    told.setdefault(side, []).append(json.loads(done.stdout.splitlines()[-1]))
                    print(method, turn, side, told[side][-1], flush=True)
            pairs = list(zip(told.pop("cook"), told.pop("llm-compressor"), strict=True))
            for figure in ("seconds", "cpu", "peak", "growth"):
                ratios = sorted(ours[figure] / theirs[figure] for ours, theirs in pairs)
                print(f"{method} {figure}: {statistics.median(ratios):.3f} of theirs ({ratios})")
            print(f"{method}: {_agreement(f'{scratch}/cook.pt', f'{scratch}/llm-compressor.pt')}")


def _agreement(ours: str, theirs: str) -> str:
    one, other = torch.load(ours), torch.load(theirs)
    assert one.keys() == other.keys()
    same = sum(int((one[name] == other[name]).sum()) for name in one)
    first = sum(int((one[name] == other[name]).sum()) for name in one if ".layers.0." in name)
    whole = sum(mask.numel() for mask in one.values())
    size = sum(mask.numel() for name, mask in one.items() if ".layers.0." in name)
    zeros = [1 - sum(int(mask.sum()) for mask in masks.values()) / whole for masks in (one, other)]
    return f"masks agree in {same / whole:.6%}, in layer 0 in {first / size:.6%}; zeros {zeros}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("quality")
    verb.add_argument("model")
    verb.add_argument("stories")
    verb.add_argument("--rows", type=int, default=128)
    verb.add_argument("--seeds", type=int, default=3)
    verb.set_defaults(call=quality)
    verb = verbs.add_parser("beside")
    verb.add_argument("python")
    verb.add_argument("--turns", type=int, default=3)
    verb.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"])
    verb.set_defaults(call=beside)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
