"""The cases of the shared test of all passes: which pairs it runs, and how many they are."""

from __future__ import annotations

import pytest

from cook.passes import PHASES, conflict, declared
from tests.helpers import tiny
from tests.helpers.pass_cases import REPRESENTATIVES, applies_to, cases, conflicts, pairs

PASSES = declared()
RUN = [(first, second) for first, second in pairs() if conflict(PASSES[first], PASSES[second]) is None]


def test_representatives_are_of_their_phase() -> None:
    assert tuple(REPRESENTATIVES) == PHASES
    for phase, names in REPRESENTATIVES.items():
        assert {PASSES[name].phase for name in names} == {phase}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_run_above_and_below_one_of_every_phase(name: str) -> None:
    above = {first for first, second in RUN if second == name}
    below = {second for first, second in RUN if first == name}
    for phase in PHASES:
        others = {other for other, cls in PASSES.items() if cls.phase == phase and other != name}
        if phase == PASSES[name].phase == "observe":
            continue  # these are all in one run
        assert bool(others & above) == bool(others & below) == bool(others), phase


def test_pairs_grow_with_the_passes_and_not_with_their_square() -> None:
    assert len(set(RUN)) == len(RUN) <= (2 * len(PHASES) + 1) * len(PASSES)


def test_every_declared_conflict_is_a_case_of_its_own() -> None:
    found = {tuple(name for name, _ in case.passes) for case in cases() if conflicts(case)}
    assert found == {
        (first, second)
        for first in PASSES
        for second in PASSES
        if conflict(PASSES[first], PASSES[second]) is not None
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pairs_of_a_pass_are_spread_over_the_families(family: str) -> None:
    met = [case for case in cases() if case.family == family and len(case.passes) == 2]
    for name in PASSES:
        assert not applies_to(name, family) or any(name in dict(case.passes) for case in met), name
