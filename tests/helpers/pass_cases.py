"""Which passes are run together, and over which model families, by the shared test of all passes."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

from cook.passes import PHASES, conflict, declared
from cook.pipeline.inputs import make_passes
from cook.recipe import load_recipe
from tests.helpers import tiny

TASKS = {"vit": "image-classification"}
"""The tasks of families that are not for texts."""

REPRESENTATIVES: dict[str, tuple[str, ...]] = {
    # Replaces the very layers that other passes prune, round and read from; the next one removes layers.
    "shape": ("lowrank.linear", "prune.layers", "lowrank.embedding"),
    # Reads inside attention and trains projections of its own; the next one reads outputs of layers only.
    "observe": ("distill.tinybert", "distill.hidden"),
    # Trains gates, and knows only at the end which units leave; then those whose units are chosen before.
    "structure": ("prune.structured", "prune.neurons", "prune.heads", "prune.layerdrop"),
    # Zeros weights after every optimizer step, which what others replace or remove must not undo.
    "weights": ("prune.weights",),
    # Replaces the forward of linear layers from the first step on, and their class at the end.
    "precision": ("quant.qat",),
}
"""The passes of each phase that others are paired with: the first one that a pass can be combined with. The
first of each asks most of other passes."""


@dataclass(frozen=True)
class Case:
    """A family, and passes by name, each with the number of one of its examples."""

    family: str
    passes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        names = [f"{name}.{number}" if number else name for name, number in self.passes]
        return "-".join([self.family, *names])


def applies_to(name: str, family: str) -> bool:
    """Whether the pass is for models of this family."""
    return declared()[name].reads is None or family not in TASKS


def conflicts(case: Case) -> bool:
    """Whether the case is a pair of passes that declare that they cannot be combined."""
    names = [name for name, _ in case.passes]
    return len(names) == 2 and _conflict(*names)


def cases(*, whole: bool = False) -> list[Case]:
    """The cases. A family *in rotation* is the one that the passes of the case have met least so far.

    Alone: the first example of every pass over every family, its others in rotation. All passes that only add
    losses: in one run, over every family. In pairs, in rotation: see `pairs`.

    Args:
        whole: every example and every ordered pair over every family.
    """
    known = declared()
    rotation = _Rotation()
    observers = tuple((name, 0) for name in known if _observes(name))
    found = [Case(family, observers) for family in tiny.FAMILIES]
    for name, cls in known.items():
        for number in range(len(cls.examples)):
            families = _families(name) if whole or number == 0 else [rotation.next(name)]
            found += [Case(family, ((name, number),)) for family in families]
    for names in itertools.product(known, repeat=2) if whole else pairs():
        families = _families(*names) if whole else [rotation.next(*names)]
        found += [Case(family, tuple((name, 0) for name in names)) for family in families]
    return found


def pairs() -> list[tuple[str, str]]:
    """The ordered pairs that the test suite runs: their number grows as that of the passes.

    Each pass twice; each pass above and below a representative of every phase; and all that declare that they
    cannot be combined, which are only planned. Passes that only add losses are not paired with each other,
    since one run of all of them shows how they meet.
    """
    known = declared()
    found = [(name, name) for name in known]
    for phase in PHASES:
        met = [name for name in known if not (phase == "observe" and _observes(name))]
        found += [(name, other) for name in met for other in _representative(phase, name, above=False)]
        found += [(other, name) for name in met for other in _representative(phase, name, above=True)]
    found += [pair for pair in itertools.product(known, repeat=2) if _conflict(*pair)]
    return list(dict.fromkeys(found))


def _representative(phase: str, name: str, *, above: bool) -> list[str]:
    """The first pass of the phase, if there is one, that can be listed above or below this one."""
    others = [other for other in REPRESENTATIVES[phase] if other != name]
    return [other for other in others if not _conflict(*((other, name) if above else (name, other)))][:1]


def _conflict(first: str, second: str) -> bool:
    known = declared()
    return conflict(known[first], known[second]) is not None


def _observes(name: str) -> bool:
    return declared()[name].phase == "observe"


def _families(*names: str) -> list[str]:
    return [family for family in tiny.FAMILIES if all(applies_to(name, family) for name in names)]


class _Rotation:
    """Families in rotation."""

    def __init__(self) -> None:
        self._met: Counter[tuple[str, str]] = Counter()

    def next(self, *names: str) -> str:
        """The family that these passes have met least, of all that they apply to."""
        family = min(
            _families(*names),
            key=lambda each: (sum(self._met[name, each] for name in names), self._met["", each]),
        )
        self._met.update((name, family) for name in (*names, ""))
        return family


def listed(case: Case, *, trains: bool = True) -> list[dict[str, Any]]:
    """The passes as a recipe lists them; in a run they begin late, so that the start is seen too."""
    known = declared()
    late = {name: {"start": 1} if trains and "start" in cls.schema() else {} for name, cls in known.items()}
    return [{name: {**late[name], **known[name].examples[number]}} for name, number in case.passes]


def wants(case: Case) -> set[str]:
    """All that the passes of a case need besides the model, with the options that they have."""
    made = make_passes(load_recipe({"version": 1, "passes": listed(case)}, partial=True))
    return set().union(*(each.wants() for each in made))
