"""`cook passes`: the list, and one pass documented from its schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from cook.cli import main
from cook.cli.passes import document, kind, listing, needs
from cook.options import REQUIRED, SCHEDULE_POINT, TARGETS, Window, option
from cook.passes import Pass, find


@dataclass(frozen=True, kw_only=True)
class SaltOptions(Window):
    """An option of every kind."""

    target: tuple[str, ...] = option(("encoder",), TARGETS, min_items=1)
    amount: float = option(REQUIRED, "how much", above=0, maximum=1)
    grain: Literal["fine", "coarse"] | None = option("fine", "which")


class Salt(Pass):
    """A pass with an option of every kind."""

    name = "season.salt"
    summary = "add salt"
    Options = SaltOptions
    examples = ({"amount": 0.5},)
    phase = "weights"
    needs = frozenset({"training", "teacher"})


class Bare(Pass):
    """A pass without options."""

    name = "season.bare"
    summary = "do nothing"


def test_document() -> None:
    text = document(Salt)
    assert text.startswith("season.salt\n  add salt\n")
    assert "phase     weights" in text
    assert "needs     teacher, training" in text
    assert text.index("  amount: number > 0 <= 1, required\n      how much") < text.index("  target: ")
    assert '  target: list of string, default ["encoder"]\n      module globs' in text
    assert '  grain: fine | coarse | null, default "fine"' in text
    assert '  start: schedule point, default "0%"' in text
    assert max(map(len, text.splitlines())) <= 100


def test_needs_of_some_options_stand_in_brackets() -> None:
    assert needs(find("prune.heads")) == ["(calibration)"]
    assert needs(find("prune.weights")) == ["(calibration)", "(training)"]
    assert needs(Salt) == ["teacher", "training"]


def test_a_pass_without_options() -> None:
    assert "no options" in document(Bare)
    assert "nothing but the model" in document(Bare)


def test_listing() -> None:
    text = listing({"season.bare": Bare, "season.salt": Salt})
    assert "season.salt  weights  teacher, training\n    add salt" in text
    assert "season.bare  observe  -\n    do nothing" in text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 2, "maximum": 8}, "integer >= 2 <= 8"),
        ({"type": ["number", "null"]}, "number or null"),
        ({"type": ["array", "null"], "items": {"type": "integer"}}, "list of integer or null"),
        ({"anyOf": [{"type": "integer"}, {"const": "all"}]}, "integer or all"),
        ({"type": "array"}, "array"),
        ({}, "any value"),
        (SCHEDULE_POINT, "schedule point"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "mapping to integer"),
    ],
)
def test_kind(schema: dict[str, Any], words: str) -> None:
    assert kind(schema) == words


def test_an_unknown_pass_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cook.passes.declared", lambda names=None: {"season.bare": Bare, "season.salt": Salt})
    monkeypatch.setattr("cook.cli.passes.declared", lambda: {"season.bare": Bare, "season.salt": Salt})
    assert main(["passes", "season.sald"]) == 2
    assert capsys.readouterr().err == "error: there is no pass 'season.sald'\n  did you mean 'season.salt'?\n"
    assert main(["passes", "season.salt"]) == 0
    assert main(["passes"]) == 0
    assert "season.bare" in capsys.readouterr().out
