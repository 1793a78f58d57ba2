"""Cut documents into sentences, as further rows that a student learns from its teacher on.

    python -m benchmarks.sentences movie_reviews/train.tsv movie_reviews/test.tsv -o sentences.tsv

Reads a column `text`, writes the columns `sentence` and `label`. The label is what `--model` says, for passes
that look at labels (importance by gradients), or else always 0: for recipes in which nothing reads one
(`task_weight: 0`).
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")


def sentences(texts: Iterable[str], shortest: int = 4, longest: int = 45) -> list[str]:
    """The different sentences of so many words, white space as single blanks, in the order of the texts."""
    found = (" ".join(part.split()) for text in texts for part in _ENDS.split(text))
    return list(dict.fromkeys(each for each in found if shortest <= len(each.split()) <= longest))


def labels(rows: list[str], path: str) -> list[int]:
    """What a classifier says of each text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).to(device).eval()
    found: list[int] = []
    with torch.inference_mode():
        for start in range(0, len(rows), 256):
            batch = tokenizer(rows[start : start + 256], padding=True, truncation=True, return_tensors="pt")
            found += model(**batch.to(device)).logits.argmax(-1).tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--model", help="a classifier that says the labels")
    args = parser.parse_args()
    csv.field_size_limit(sys.maxsize)
    texts = []
    for path in args.tables:
        with open(path, encoding="utf-8", newline="") as file:
            texts += [row["text"] for row in csv.DictReader(file, delimiter="\t")]
    rows = sentences(texts)
    random.Random(0).shuffle(rows)
    with open(args.out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["sentence", "label"])
        writer.writerows(zip(rows, labels(rows, args.model) if args.model else [0] * len(rows), strict=True))
    print(f"{len(rows):,} sentences of {len(texts):,} documents")


if __name__ == "__main__":
    main()
