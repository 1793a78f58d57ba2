"""Provenance of a split's rows, so that splits can be compared, cut and described in errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from datasets import Dataset

SHOWN = 5
"""Maximum number of rows listed in an error."""


@dataclass(frozen=True)
class Origin:
    """A source of rows: a file, a split of a dataset, or rows in memory.

    Attributes:
        name: the path of a file, or another identifier of the source.
        numbers: of each row, as shown to users: lines of a file, rows of a sheet.
        unit: of the numbers.
        first: the number of the first unit, 0 or 1.
    """

    name: str
    numbers: Sequence[int] = field(repr=False)
    unit: str = "row"
    first: int = 0


@dataclass(frozen=True)
class Part:
    """Rows of one or several sources.

    Attributes:
        rows: the place of each row of `dataset` in the joined rows of `origins`, shape `(rows,)`.
    """

    dataset: Dataset
    origins: Sequence[Origin]
    rows: np.ndarray = field(repr=False)

    @classmethod
    def whole(cls, dataset: Dataset, origins: Sequence[Origin]) -> Part:
        """All rows of the sources."""
        return cls(dataset, origins, np.arange(len(dataset)))

    def select(self, chosen: Sequence[int] | np.ndarray | range) -> Part:
        """The part with the rows at these positions."""
        if len(chosen) == len(self.dataset) and np.array_equal(chosen, np.arange(len(chosen))):
            return self
        chosen = np.asarray(chosen, dtype=np.int64)
        return replace(self, dataset=self.dataset.select(chosen), rows=self.rows[chosen])

    def sources(self) -> dict[str, set[int]]:
        """The rows of each source, by its name."""
        found: dict[str, set[int]] = {}
        start = 0
        for origin in self.origins:
            end = start + len(origin.numbers)
            inside = self.rows[(self.rows >= start) & (self.rows < end)] - start
            found.setdefault(origin.name, set()).update(inside.tolist())
            start = end
        return found

    def describe(self, places: Sequence[int]) -> str:
        """The location of some rows, the first few by number: `lines 3, 7 of train.csv (counted from 1)`."""
        texts: dict[tuple[str, str, int], list[int]] = {}
        ends = np.cumsum([len(origin.numbers) for origin in self.origins])
        for row in self.rows[np.asarray(places[:SHOWN], dtype=np.int64)]:
            index = int(np.searchsorted(ends, row, side="right"))
            origin = self.origins[index]
            inside = int(row) - (int(ends[index - 1]) if index else 0)
            texts.setdefault((origin.name, origin.unit, origin.first), []).append(origin.numbers[inside])
        locations = [
            f"{unit}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} "
            f"of {Path(name).name} (counted from {first})"
            for (name, unit, first), numbers in texts.items()
        ]
        rest = len(places) - SHOWN
        return " and ".join(locations) + (f", and {rest} more" if rest > 0 else "")


def overlap(one: Part, other: Part) -> int:
    """The number of rows that both parts take from the same sources."""
    own_rows, other_rows = one.sources(), other.sources()
    return sum(len(rows & other_rows.get(name, set())) for name, rows in own_rows.items())
