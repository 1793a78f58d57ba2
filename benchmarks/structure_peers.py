"""Half of the heads and half of the neurons by three libraries: accuracy at once, time, and reloading.

    pip install --target PEERS --no-deps torch-pruning textpruner
    python -m benchmarks.structure_peers --peers PEERS --model MODEL --train train.tsv \\
        --validation validation.tsv

Every library looks at the same rows, removes at once and trains nothing. Torch-Pruning goes by its Taylor
importance of coupled groups, TextPruner by its own gradient scores in four iterations, cook as its passes do
by default. The times are those of one process, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import io
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import cook
from benchmarks.pairs import machine, measure, ratio
from benchmarks.structure import forward, load, sample

Batches = list[dict[str, torch.Tensor]]


def by_cook(model: Any, batches: Batches, what: set[str]) -> Any:
    passes = [{f"prune.{kind}": {"sparsity": 0.5}} for kind in ("heads", "neurons") if kind in what]
    return cook.apply(model, {"version": 1, "passes": passes}, calibration=batches).model


def by_torch_pruning(model: Any, batches: Batches, what: set[str]) -> Any:
    """Neurons only: its dependency graph couples BERT's heads with the hidden width."""
    import torch_pruning

    if "heads" in what:
        raise NotImplementedError("heads alone, with the hidden width kept")
    layers = model.bert.encoder.layer
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        {name: value[:1] for name, value in batches[0].items() if name != "labels"},
        importance=torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=0.0,
        pruning_ratio_dict={tuple(layer.intermediate.dense for layer in layers): 0.5},
        round_to=8,
        output_transform=lambda output: output.logits.sum(),
    )
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    pruner.step()
    return model


def by_textpruner(model: Any, batches: Batches, what: set[str]) -> Any:
    from textpruner import GeneralConfig, TransformerPruner, TransformerPruningConfig

    config = model.config
    options = TransformerPruningConfig(
        target_ffn_size=config.intermediate_size // (2 if "neurons" in what else 1),
        target_num_of_heads=config.num_attention_heads // (2 if "heads" in what else 1),
        pruning_method="iterative",
        n_iters=4,
        head_even_masking=False,
        ffn_even_masking=False,
    )
    general = GeneralConfig(output_dir="out/textpruner")  # it saves its scores there, ignored by git
    pruner = TransformerPruner(model, transformer_pruning_config=options, general_config=general)
    pruner.prune(
        dataloader=batches,
        adaptor=lambda output, *_: output.loss,
        save_model=False,
    )
    return model


RIVALS: dict[str, Callable[[Any, Batches, set[str]], Any]] = {
    "cook": by_cook,
    "Torch-Pruning": by_torch_pruning,
    "TextPruner": by_textpruner,
}


@torch.inference_mode()
def accuracy(model: Any, tokenizer: Any, args: argparse.Namespace) -> float:
    with open(args.validation, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    right = 0
    for start in range(0, len(rows), 64):
        some = rows[start : start + 64]
        batch = tokenizer([row[args.text] for row in some], padding=True, return_tensors="pt")
        found = model(**batch).logits.argmax(-1).tolist()
        right += sum(each == int(row[args.label]) for each, row in zip(found, some, strict=True))
    return right / len(rows)


def reloads(model: Any, batch: dict[str, torch.Tensor]) -> str:
    """Whether `save_pretrained` and `from_pretrained` give the same outputs."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
        try:
            again = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            with torch.inference_mode():
                same = torch.allclose(again(**batch).logits, model(**batch).logits, atol=1e-4)
        except Exception as failure:
            return f"no: {type(failure).__name__}"
    return "yes" if same else "loads, and gives something else"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("peers", "model", "train", "validation"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--text", default="sentence")
    parser.add_argument("--label", default="label")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    sys.path.append(args.peers)
    print(machine())
    whole, tokenizer = load(args.model), AutoTokenizer.from_pretrained(args.model)
    batches = sample(args, tokenizer, 0)
    tokens = torch.randint(1000, 2000, (32, 64), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    print("| half of the | by | accuracy | whole / half, 32 x 64 | seconds to prune | reloads |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    for what in ({"neurons"}, {"heads"}, {"heads", "neurons"}):
        for name, prune in RIVALS.items():
            words = " and ".join(sorted(what))
            began = time.perf_counter()
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    half = prune(copy.deepcopy(whole), batches, what).eval()
            except Exception as failure:
                text = " ".join(str(failure).split())[:80]
                print(f"| {words} | {name} | {type(failure).__name__}: {text} | | | |", flush=True)
                continue
            took = time.perf_counter() - began
            seconds = measure(
                {"whole": partial(forward, whole, batch), "half": partial(forward, half, batch)},
                rounds=args.rounds,
                warm_up=2,
            )
            found = ratio(seconds["whole"], seconds["half"])
            print(
                f"| {words} | {name} | {accuracy(half, tokenizer, args):.4f} "
                f"| {found.middle:.2f} [{found.low:.2f}, {found.high:.2f}] | {took:.0f} "
                f"| {reloads(half, batch)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
