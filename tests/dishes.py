"""Cases of the kitchen, shared by the tests of every pass and dealt out to test processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cook.model.verify import verify
from cook.train.tasks import find
from tests import kitchen
from tests.kitchen import Case, Dish

SHARDS = 6
"""Groups that the cases are dealt out to: as many test processes can share the work."""


def dealt(values: Sequence[Any]) -> list[Any]:
    """Parameters of a test, each in one of the groups; a tuple holds several arguments."""
    hands = [value if isinstance(value, tuple) else (value,) for value in values]
    groups = [pytest.mark.xdist_group(f"every pass {number % SHARDS}") for number in range(len(hands))]
    return [pytest.param(*hand, marks=group) for hand, group in zip(hands, groups, strict=True)]


def auto_class(family: str) -> str:
    return find(kitchen.TASKS.get(family, "text-classification")).auto_class


class Dishes:
    """Cooks each case when it is first asked for, and has it loaded back when it is first asked for that."""

    def __init__(self, root: Path):
        self.pantry = kitchen.Pantry(root)
        self.cooked: dict[Case, Dish] = {}
        self._reloaded: dict[Case, dict[str, Any]] = {}

    def __getitem__(self, case: Case) -> Dish:
        if case not in self.cooked:
            self.cooked[case] = kitchen.cook(case, self.pantry, self.pantry.root / str(case))
        return self.cooked[case]

    def reloaded(self, case: Case) -> dict[str, Any]:
        """What the saved folder gives in a fresh process."""
        if case not in self._reloaded:
            dish = self[case]
            self._reloaded[case] = verify(
                dish.folder, dish.batch, dish.expected, auto_class=auto_class(case.family)
            )
        return self._reloaded[case]
