"""The registry, the windows, and what every registered pass promises by its class attributes."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from inspect import getdoc

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cook import passes
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.options import REQUIRED, option
from cook.passes import BUILT_IN, NEEDS, PHASES, Pass, Window, declared, find, register, registered, spec
from tests.helpers import bound, tiny

ALL = registered()


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(passes, "_registry", dict(passes._registry))


@dataclass(frozen=True, kw_only=True)
class Needed:
    share: float = option(REQUIRED, "a share")


def made(**attributes) -> type[Pass]:
    return type("Made", (Pass,), {"name": "test.made", "summary": "", **attributes})


def test_what_is_shipped_is_found():
    assert list(ALL) == sorted(ALL)
    assert {"distill.logits", "prune.weights", "quant.qat"} <= set(ALL)
    assert all(find(name) is cls for name, cls in ALL.items())


def test_a_pass_is_its_declaration_and_what_it_does():
    assert list(declared()) == list(ALL)
    for name, home in BUILT_IN.items():
        assert issubclass(find(name), spec(name))
        assert (spec(name).name, find(name).name) == (name, name)
        for attribute in ("Options", "required", "needs", "phase", "check", "wants"):
            assert getattr(find(name), attribute) is getattr(spec(name), attribute), (name, attribute)
        assert home.implementation == f"{find(name).__module__}:{find(name).__qualname__}"


def test_packages_are_asked_only_for_a_pass_that_is_not_shipped_here(monkeypatch):
    def asked():
        raise AssertionError("other packages were asked")

    monkeypatch.setattr(passes, "_of_other_packages", asked)
    assert {"prune.weights", "quant.qat"} <= set(declared(["prune.weights", "quant.qat"]))
    with pytest.raises(AssertionError, match="were asked"):
        declared(["prune.weights", "season.salt"])


def test_choices_are_what_the_implementations_have():
    from cook.distill import hidden, logits, patient, tinybert

    for name, key, choices in (
        ("distill.logits", "loss", logits.LOSSES),
        ("distill.hidden", "distance", hidden.DISTANCES),
    ):
        assert spec(name).schema()[key]["enum"] == sorted(choices)
    for name, choices in (("patient", patient.STRATEGIES), ("tinybert", tinybert.STRATEGIES)):
        assert spec(f"distill.{name}").schema()["layers"]["anyOf"][0]["enum"] == sorted(choices)


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(CookError, match=r"no pass 'prune\.weight'") as caught:
        find("prune.weight", where="r.yaml:3")
    assert caught.value.where == "r.yaml:3"
    assert caught.value.hint == "did you mean 'prune.weights'?"
    with pytest.raises(CookError) as caught:
        find("zzz")
    assert all(name in caught.value.hint for name in ALL)


def test_registering_makes_a_pass_known():
    cls = register(made())
    assert find("test.made") is cls
    assert register(cls) is cls


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"phase": "late"}, "phase 'late' is none of"),
        ({"needs": frozenset({"training", "luck"})}, r"needs \['luck'\] are none of"),
        ({"name": "prune.weights"}, "two passes are called 'prune.weights'"),
        ({"Options": Needed}, "an example lacks"),
    ],
)
def test_a_wrong_pass_is_not_registered(attributes, message):
    before = dict(passes._registry)
    with pytest.raises(ValueError, match=message):
        register(made(**attributes))
    assert passes._registry == before


class Elsewhere(Pass):
    """A pass of another package."""

    name, summary = "test.elsewhere", ""


def test_other_packages_add_passes_and_are_asked_once(monkeypatch):
    asked = []

    def installed(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint("elsewhere", f"{__name__}:Elsewhere", "cook.passes")]

    monkeypatch.setattr(passes, "entry_points", installed)
    monkeypatch.setattr(passes, "_of_other_packages", cache(passes._of_other_packages.__wrapped__))
    assert find("test.elsewhere") is Elsewhere
    assert registered().keys() == {*ALL, "test.elsewhere"}
    assert asked == ["cook.passes"]


@pytest.mark.parametrize("name", ALL)
def test_a_pass_says_what_it_is(name):
    cls = ALL[name]
    family, _, method = name.partition(".")
    assert family
    assert method
    assert name == name.lower()
    assert cls.__module__.split(".")[:2] == ["cook", family] or not cls.__module__.startswith("cook.")
    assert 10 < len(cls.summary) < 100
    assert not cls.summary.endswith(".")
    assert getdoc(cls)
    assert cls.phase in PHASES
    assert cls.needs <= NEEDS
    assert set(cls.required) <= set(cls.schema())


@pytest.mark.parametrize("name", ALL)
def test_options_are_schemas_whose_defaults_are_valid(name):
    cls = ALL[name]
    for name_, schema in cls.schema().items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("description"), name_
        assert schema.keys() & {"type", "enum", "anyOf"}, name_
        if name_ in cls.required:
            assert "default" not in schema, name_
        else:
            jsonschema.validate(schema["default"], schema)


@pytest.mark.parametrize("name", ALL)
def test_a_pass_plans_without_weights_and_changes_nothing_there(name):
    for example in ALL[name].examples:
        (planned,) = bound.passes({name: dict(example)})
        with torch.device("meta"):
            model = tiny.model()
        before = [(key, type(module)) for key, module in model.named_modules()]
        effect = planned.plan(Anatomy(model))
        assert [(key, type(module)) for key, module in model.named_modules()] == before
        assert effect.note
        for parameter in effect.parameters:
            model.get_parameter(parameter)
        for edit in effect.edits:
            edit.check()


def test_the_contract_asks_for_nothing():
    plain = made()({})
    assert (plain.id, plain.where) == ("test.made", "test.made")
    assert plain.plan(None).parameters == []
    assert (plain.losses(None), plain.facts(None), plain.state_dict()) == ({}, {}, {})
    assert plain.task_weight() == 1
    assert plain.status() == ""


def test_errors_point_at_the_option():
    error = made()({}, id="test.made#2", where="r.yaml:4: passes[1]").error("no", option="share", hint="do")
    assert str(error) == "r.yaml:4: passes[1].share: no\n  do"


STEPS = st.integers(0, 30)


@given(start=STEPS, end=STEPS, step=STEPS)
def test_a_window_holds_its_start_and_not_its_end(start, end, step):
    window = Window(start, end)
    assert (step in window) == (step in range(start, end))
    assert "1" not in window
    assert 0 <= window.progress(step) <= window.progress(step + 1) <= 1
    assert window.progress(max(start, end)) == 1
    if step < start:
        assert window.progress(step) == 0
    elif step < end:
        assert window.progress(step) == (step - start) / (end - start)
