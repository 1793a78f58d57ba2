"""What vocabulary pruning takes away without any training, by which texts say what stays.

    python -m benchmarks.vocabulary MODEL --train train.tsv --validation validation.tsv
    python -m benchmarks.vocabulary TOKENIZER --language texts.txt --other others.txt

The first measures a text classifier; `data.text` is the only column with text. The second takes the tokenizer
of a language model, with a GPT-2 of random weights and width 64, since weights play no part; `--other` are
texts that it was not pruned on, and how many tokens they take before and after is told.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

import cook

HEAD = "| texts that say what stays | options | tokens | embedding | parameters | {} | s |"


def prune(model: Any, tokenizer: Any, options: dict[str, Any], **data: Any) -> tuple[Any, float]:
    """What `cook.apply` gives, and its seconds."""
    config = {"version": 1, **data, "passes": [{"prune.vocabulary": options}]}
    start = time.perf_counter()
    result = cook.apply(model, config, tokenizer=tokenizer)
    return result, time.perf_counter() - start


def row(texts: str, options: dict[str, Any], result: Any, last: str, seconds: float) -> str:
    """One line of the table."""
    facts, told = result.report.passes[0].facts, result.report.model
    width = result.model.get_input_embeddings().embedding_dim
    shown = ", ".join(f"{key}: {str(value).lower()}" for key, value in options.items() if key != "corpora")
    change = [f"{facts[key]:,}" for key in ("tokens_before", "tokens_after")]
    sizes = [f"{facts[key] * width:,}" for key in ("tokens_before", "tokens_after")]
    whole = [f"{state.parameters:,}" for state in (told.before, told.after)]
    cells = [" -> ".join(pair) for pair in (change, sizes, whole)]
    return f"| {texts} | {shown or '-'} | {' | '.join(cells)} | {last} | {seconds:.0f} |"


def classifier(args: argparse.Namespace) -> None:
    """Accuracy before and after, on the validation rows."""
    print(HEAD.format("accuracy, gone tokens in the data"))
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    data = {"data": {"train": args.train, "validation": args.validation}}
    settings = {"train + validation": None, "train": [args.train], "validation": [args.validation]}
    for name, corpora in settings.items():
        for more in ({}, {"alphabet": False}) if corpora is None else ({},):
            model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32)
            options = {"corpora": corpora, **more}
            result, seconds = prune(model, AutoTokenizer.from_pretrained(args.model), options, **data)
            told = result.report
            metric = [state.metrics["accuracy"] for state in (told.model.before, told.model.after)]
            last = f"{metric[0]:.4f} -> {metric[1]:.4f}, {told.passes[0].facts['own_tokens_gone']:,}"
            print(row(name, options, result, last, seconds), flush=True)


def language(args: argparse.Namespace) -> None:
    """Tokens that other texts take before and after."""
    lines = Path(args.other).read_text(encoding="utf-8").splitlines()
    print(HEAD.format(f"tokens of {Path(args.other).name}"))
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for more in ({}, {"minimum": 10}):
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, **ends))
        result, seconds = prune(model, tokenizer, {"corpora": [args.language], **more})
        lengths = [sum(map(len, each(lines)["input_ids"])) for each in (tokenizer, result.tokenizer)]
        assert [result.tokenizer.decode(ids) for ids in result.tokenizer(lines)["input_ids"]] == lines
        last = " -> ".join(f"{length:,}" for length in lengths)
        print(row(Path(args.language).name, more, result, last, seconds), flush=True)


def main() -> None:
    """Print the table for a classifier, or for the tokenizer of a language model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder or a hub id")
    parser.add_argument("--train")
    parser.add_argument("--validation")
    parser.add_argument("--language", help="a text file, a text a line")
    parser.add_argument("--other", help="another one")
    args = parser.parse_args()
    language(args) if args.language else classifier(args)


if __name__ == "__main__":
    main()
