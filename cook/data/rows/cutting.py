"""Splits a validation set off the rows of train, at random but fixed by a seed, optionally stratified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cook.data.files.cells import label_names
from cook.data.files.parts import Part
from cook.sections import Cut

if TYPE_CHECKING:
    from cook.data.rows.sources import ErrorAt


def parts(train: Part, asked: Cut, label: str, error: ErrorAt, say: Callable[[str], None]) -> dict[str, Part]:
    """Validation as a share of the rows of train, and train without them.

    Args:
        asked: `data.validation`.
        label: column of the label.

    Raises:
        CookError: one of the two would be empty.
    """
    total = len(train.dataset)
    split = asked.split
    size = split if isinstance(split, int) else round(float(split.rstrip("%")) * total / 100)
    if not 0 < size < total:
        message = f"{split} of the {total} rows of train are {size} rows, and both parts need some"
        raise error("data.validation", message, f"there can be 1 to {total - 1} rows")
    labels = None
    if asked.stratify:
        if label not in train.dataset.features:
            columns = ", ".join(train.dataset.column_names)
            raise error("data.label", f"there is no column {label!r}", f"the columns are {columns}")
        labels = label_names(train.dataset, label)
        if single := sorted(name for name, count in Counter(labels).items() if count == 1):
            listed = ", ".join(map(repr, single[:12])) + (", ..." if len(single) > 12 else "")
            say(f"validation has no row of {len(single)} classes that have a single row: {listed}")
    rows = cut(total, size, asked.seed, labels)
    if not 0 < len(rows) < total:
        message = f"no class has two rows, so that {total} rows cannot be cut by class"
        raise error("data.validation", message, "leave stratify out")
    if len(rows) != size:
        say(f"validation has {len(rows)} rows in the place of {size}, so that each class can have its own")
    rest = np.setdiff1d(np.arange(total), rows)
    return {"train": train.select(rest), "validation": train.select(rows)}


def cut(total: int, size: int, seed: int, labels: Sequence[str] | None = None) -> np.ndarray:
    """Draw rows to take out of `total` at random: determined by the seed, in their old order.

    Args:
        size: number of rows to take.
        labels: of each row; if given, every class contributes its share of `size`, at least one row but not
            all of them. A class with a single row contributes none. The result may exceed `size`.

    Returns:
        Row numbers, ascending.
    """
    # The stream of RandomState is guaranteed not to change across numpy versions.
    order = np.random.RandomState(seed).permutation(total)
    if labels is None:
        return np.sort(order[:size])
    wanted = shares(Counter(labels), size)
    chosen = []
    for row in order:
        if wanted[labels[row]] > 0:
            wanted[labels[row]] -= 1
            chosen.append(int(row))
    return np.sort(np.array(chosen, dtype=np.int64))


def shares(counts: Counter[str], size: int) -> dict[str, int]:
    """The number of rows from each class, by largest remainders; see `cut`."""
    total = sum(counts.values())
    exact = {name: size * count / total for name, count in counts.items()}
    result = {
        name: min(max(int(exact[name]), 1), counts[name] - 1) if counts[name] > 1 else 0 for name in counts
    }
    while sum(result.values()) < size:
        room = [name for name in result if result[name] < counts[name] - 1]
        if not room:
            break
        # Ties are broken by name, independent of the order of rows.
        result[max(sorted(room), key=lambda name: exact[name] - result[name])] += 1
    while sum(result.values()) > size:
        room = [name for name in result if result[name] > 1]
        if not room:
            break
        result[max(sorted(room), key=lambda name: result[name] - exact[name])] -= 1
    return result
