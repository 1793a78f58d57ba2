"""Cut documents into sentences, as further rows that a student learns from its teacher on.

    python -m benchmarks.sentences movie_reviews/train.tsv movie_reviews/test.tsv -o sentences.tsv

Reads a column `text`, writes the columns `sentence` and `label`, the latter always 0: for recipes in which
no loss reads a label (`task_weight: 0`).
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
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
        writer.writerows([each, 0] for each in rows)
    print(f"{len(rows):,} sentences of {len(texts):,} documents")


if __name__ == "__main__":
    main()
