"""What passes declare that they cannot be combined with: asked in both orders, refused early, and documented.

`test_pass_matrix.py` shows that the plan refuses every declared pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from cook import passes
from cook.cli.passes import document
from cook.errors import CookError
from cook.passes import Conflict, Pass, conflict, declared, spec
from cook.pipeline.plan import plan_passes
from cook.recipe import load_recipe
from tests.helpers import bound, tiny

FIRST, SECOND = {"include": ["layers[0]"]}, {"include": ["layers[1]"]}
HALF, MACS = {"sparsity": 0.5}, {"budget": {"macs": 0.9}}
GROUPS = {"groups": [[0, 1], [2], [3]]}
SVD = {"method": "svd", "spread": False}

COMBINED: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("prune.heads", {**HALF, **FIRST}, "prune.heads", {**HALF, **SECOND}),
    ("prune.heads", {**HALF, **FIRST}, "prune.units", {**MACS, **SECOND}),
    ("prune.neurons", {**HALF, **FIRST}, "prune.neurons", {**HALF, **SECOND}),
    ("prune.neurons", {**HALF, **FIRST}, "prune.units", {**MACS, **SECOND}),
    ("prune.units", {**MACS, **FIRST}, "prune.units", {**MACS, **SECOND}),
    ("prune.structured", {**MACS, "gates": ["neurons"]}, "prune.heads", HALF),
    ("prune.structured", {**MACS, "gates": ["heads"]}, "prune.neurons", HALF),
    ("prune.structured", {**MACS, "gates": ["heads"]}, "prune.structured", {**MACS, "gates": ["neurons"]}),
    ("prune.structured", {**MACS, "gates": ["hidden"]}, "prune.units", MACS),
    ("quant.qat", FIRST, "quant.qat", SECOND),
    ("lowrank.linear", {**SVD, **FIRST}, "lowrank.linear", SVD),
    ("share.layers", {"groups": 2, "parts": "ffn"}, "lowrank.linear", {**SVD, "exclude": ["ffn"]}),
    ("lowrank.linear", SVD, "share.layers", {"groups": 2}),
    ("share.layers", {"groups": 2, "parts": "ffn"}, "share.layers", {"groups": 2, "parts": "attention"}),
    ("share.layers", GROUPS, "share.layers", {"groups": [[0], [1], [2, 3]]}),
    ("share.layers", GROUPS, "prune.layerdrop", {"keep": [0, 1]}),
    ("share.layers", GROUPS, "prune.layers", {"keep": [0, 1, 3]}),
    ("prune.layers", {"keep": [0, 1]}, "share.layers", {"groups": 2}),
    ("distill.tinybert", {"parts": ["hidden"]}, "prune.layerdrop", {}),
    ("distill.tinybert", {"layers": [0]}, "prune.layerdrop", {"keep": [0]}),
    ("distill.minilm", {"student_layer": 0}, "prune.layerdrop", {"keep": [0]}),
    ("distill.minilm", {"student_layer": 0}, "prune.layers", {"keep": [0]}),
]
"""Pairs that conflict, each with options or in an order with which the declaration says that they do not."""


class Alone(Pass):
    """Cannot be combined with two others."""

    name, summary, options = "test.alone", "", {}
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "test.other": Conflict("both act on everything"),
        "test.early": Conflict("it makes what the other one reads", only_below=True),
        "test.absent": Conflict("of a package that is not installed"),
    }


class Other(Pass):
    name, summary, options = "test.other", "", {}


class Early(Pass):
    name, summary, options = "test.early", "", {}


@pytest.fixture
def _three_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_registry", {cls.name: cls for cls in (Alone, Other, Early)})


@pytest.mark.parametrize(("first", "its", "second", "others"), COMBINED)
def test_passes_are_combined_as_their_declaration_says(
    first: str, its: dict[str, Any], second: str, others: dict[str, Any]
) -> None:
    with torch.device("meta"):
        model, teacher = tiny.model(layers=4), tiny.model(layers=4)
    plan_passes(model, bound.passes({first: its}, {second: others}), [teacher])


def test_every_condition_has_an_example() -> None:
    shown = {frozenset((first, second)) for first, _, second, _ in COMBINED}
    for name, cls in declared().items():
        for other, found in cls.incompatible.items():
            assert other in declared(), f"{name} names {other}"
            assert found.unless is None or frozenset((name, other)) in shown, (name, other)


def test_either_of_two_passes_declares_for_both_orders() -> None:
    heads, units = spec("prune.heads"), spec("prune.units")
    assert conflict(heads, units) == conflict(units, heads) == heads.incompatible["prune.units"]
    assert conflict(heads, spec("prune.neurons")) is None
    assert conflict(spec("prune.layers"), spec("prune.layers")) is not None


def test_an_order_that_works_is_no_conflict() -> None:
    assert conflict(Early, Alone) is Alone.incompatible["test.early"]
    assert conflict(Alone, Early) is None


@pytest.mark.usefixtures("_three_more")
@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (
            ["test.other", "test.alone"],
            "test.alone cannot be combined with test.other in passes[0]: both act on everything",
            "leave out one of the two",
        ),
        (
            ["test.alone", "test.other"],
            "test.other cannot be combined with test.alone in passes[0]: both act on everything",
            "leave out one of the two",
        ),
        (
            ["test.early", "test.alone"],
            "test.alone cannot be combined with test.early in passes[0]: it makes what the other one reads",
            "list test.alone above test.early",
        ),
    ],
)
def test_a_pair_without_a_condition_is_refused_with_the_recipe(
    names: list[str], message: str, hint: str
) -> None:
    with pytest.raises(CookError) as caught:
        load_recipe({"version": 1, "passes": names}, partial=True)
    assert (caught.value.message, caught.value.hint) == (message, hint)
    assert caught.value.where == "<dict>: passes[1]"


@pytest.mark.usefixtures("_three_more")
def test_the_order_that_works_and_a_condition_are_not_refused_with_the_recipe() -> None:
    load_recipe({"version": 1, "passes": ["test.alone", "test.early"]}, partial=True)
    load_recipe({"version": 1, "passes": ["quant.qat", "quant.qat"]}, partial=True)


@pytest.mark.parametrize("name", ["prune.layers", "prune.vocabulary"])
def test_a_second_use_of_what_is_for_once_is_refused_with_the_recipe(name: str) -> None:
    item = {name: dict(spec(name).examples[0])}
    with pytest.raises(CookError, match="stands here a second time") as caught:
        load_recipe({"version": 1, "passes": [item, item]}, partial=True)
    assert caught.value.where == "<dict>: passes[1]"


@pytest.mark.usefixtures("_three_more")
def test_the_documentation_of_a_pass_says_what_it_cannot_be_combined_with() -> None:
    text = document(Alone)
    assert "cannot be combined with\n" in text
    assert "  test.other\n      both act on everything\n" in text
    assert "  test.early above it\n      it makes what the other one reads\n" in text
    assert "  test.alone below it\n" in document(Early)
    assert "cannot be combined with" not in document(spec("prune.weights"))
    assert "  prune.layers\n      a recipe can have it only once" in document(spec("prune.layers"))
    assert ", unless `include` or `exclude`" in document(spec("quant.qat")).replace("\n      ", " ")
