"""Mutated recipes: every text gives a Recipe or a CookError; `benchmarks/fuzz_recipes.py` tries more."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.fuzz_recipes import main, mutated, outcome, texts
from cook import passes
from cook.builtin import BUILT_IN
from cook.errors import CookError
from cook.recipe import load_recipe


@pytest.fixture(autouse=True)
def shipped(registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passes of the shipped recipes, in the place of those of the other tests here."""
    monkeypatch.setattr(passes, "BUILT_IN", BUILT_IN)
    monkeypatch.setattr(passes, "_registry", {})


def test_mutated_recipes_give_a_recipe_or_an_error(tmp_path: Path) -> None:
    chance, sources, counts = random.Random(12), texts(), Counter[str]()
    for _ in range(500):
        text = mutated(chance, sources)
        try:
            counts[outcome(tmp_path / "recipe.yaml", text)] += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}, of\n{text}") from error
    assert counts["recipe"] > 20
    assert counts["error"] > 200


def test_the_fuzz_counts_what_it_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "3", "--seed", "5"]) == 0
    assert "3 texts, seed 5: " in capsys.readouterr().out


TRACEBACKS = {
    "a required option is missing beside a mistake around the pass": (
        "s:\npasses:\n  - .\n  - distill.hidden\npasses:\n      p: {}\n",
        "the key 'passes' stands twice",
    ),
    "a budget without a value": (
        "version: 1\npasses:\n- prune.structured: {budget: {macs}}\n",
        "expected one of parameters, macs and latency, found none",
    ),
    "heads with a budget without a value": (
        "version: 1\npasses:\n- prune.heads: {budget: {latency: null}}\n",
        "expected one of parameters, macs and latency, found none",
    ),
    "a budget of low rank without a value": (
        "version: 1\npasses:\n- lowrank.linear: {budget: {macs}}\n",
        "expected either parameters or macs",
    ),
}


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("case", TRACEBACKS)
def test_own_checks_run_on_options_that_are_right(case: str, partial: bool, tmp_path: Path) -> None:
    text, said = TRACEBACKS[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(CookError) as caught:
        load_recipe(path, partial=partial)
    assert said in str(caught.value)
