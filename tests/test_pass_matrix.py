"""Every registered pass over every model family, and in pairs; a pass that is registered is among them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import cook
from cook.data.tasks import find
from cook.errors import CookError
from cook.model.hub import folder
from cook.model.hub.verify import verify
from cook.model.nn.embedding import FactorisedEmbedding, FactorisedHead, TransposedLinear
from cook.model.nn.integer import IntLinear
from cook.model.nn.lowrank import Apart, LowRank
from cook.model.nn.residual import Residual
from cook.model.probe.measure import tally
from cook.passes import registered
from cook.pipeline.folders.deliver import INTEGERS_MAY_DIFFER
from cook.pipeline.report_parts import pass_rows
from tests.helpers import pass_cases, pass_matrix, tiny
from tests.helpers.clean_process import Strangers
from tests.helpers.pass_cases import Case, applies_to
from tests.helpers.pass_matrix import CaseResult, Resources, run_case
from tests.helpers.traces import differences, hooks

WHOLE = "COOK_WHOLE_MATRIX" in os.environ
CASES = pass_cases.cases(whole=WHOLE)
CONFLICTS = [case for case in CASES if pass_cases.conflicts(case)]
RUN = [case for case in CASES if not pass_cases.conflicts(case)]
FIGURES = {"parameters", "zeros", "sparsity", "bytes", "macs", "metrics", "removed"}

pytestmark = pytest.mark.usefixtures("clean_processes")


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resources]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("matrix")
        patch.setenv("COOK_CACHE", str(root / "cache"))
        yield Resources(root)


@pytest.fixture(scope="module")
def result(request: pytest.FixtureRequest, resources: Resources) -> CaseResult:
    """The runs of one case; pytest makes all tests of it before the next case is run."""
    return run_case(request.param, resources, resources.root / str(request.param))


@pytest.fixture(scope="module")
def reloaded(result: CaseResult) -> dict[str, Any]:
    """What the saved folder gives in a fresh process."""
    return verify(result.folder, result.batch, result.expected, auto_class=auto_class(result.case))


def auto_class(case: Case) -> str:
    return find(pass_cases.TASKS.get(case.family, "text-classification")).auto_class


every_case = pytest.mark.parametrize("result", RUN, ids=str, indirect=True)


@every_case
def test_the_plan_says_what_will_happen(result: CaseResult) -> None:
    assert {parameter.device.type for parameter in result.meta.parameters()} == {"meta"}
    planned, after = tally(result.meta), result.resumed.outcome.after
    sizes = {effect.sizes for _, effect in result.planned}
    if "about" in sizes:
        assert after["parameters"] < tally(tiny.model(result.case.family)).parameters
    elif "at most" in sizes:
        assert planned.parameters > after["parameters"]
        assert planned.bytes > after["bytes"]
    else:
        assert (planned.parameters, planned.bytes) == (after["parameters"], after["bytes"])
    # Of the model as loaded, or as a pass that changed its shapes at once left it.
    source = {
        name
        for model in (tiny.model(result.case.family), result.meta)
        for name, _ in model.named_parameters()
    }
    # Factors of a layer may be gone by the end.
    factorised = [
        edit.module for _, effect in result.planned for edit in effect.edits if edit.op == "lowrank"
    ]
    source |= {f"{name}.{factor}.weight" for name in factorised for factor in ("up", "down")}
    for each, effect in result.planned:
        assert set(effect.parameters) <= source, each.id
        # Of what leaves nobody knows the zeros before.
        assert effect.zeros <= after["zeros"] or sizes & {"at most", "about"}
        assert effect.note


@every_case
def test_a_resumed_run_ends_in_the_same_bits(result: CaseResult) -> None:
    for state in result.checkpoints:
        state["run"].pop("seconds")
    assert list(differences(*result.checkpoints)) == []
    whole, resumed = result.whole, result.resumed
    assert list(differences(whole.model.state_dict(), resumed.model.state_dict())) == []
    optimizers = whole.loop.optimizer.state_dict(), resumed.loop.optimizer.state_dict()
    assert list(differences(*optimizers)) == []
    assert list(differences(whole.loop.history, resumed.loop.history)) == []
    assert whole.outcome.facts == resumed.outcome.facts
    assert whole.outcome.states == resumed.outcome.states
    assert whole.outcome.after == resumed.outcome.after


@every_case
def test_training_moved_the_model(result: CaseResult) -> None:
    source = tiny.model(result.case.family).state_dict()
    trained = result.checkpoints[0]["session"]["module"]
    names = [name for name in source if f"model.{name}" in trained]  # without layers that were left out
    moved = [name for name in names if not torch.equal(trained[f"model.{name}"], source[name])]
    assert len(moved) > len(names) // 2


@every_case
def test_a_finished_model_is_plain(result: CaseResult) -> None:
    # That no hook is left, on modules or on the optimizer, is asserted at the end of each run.
    model = result.resumed.model
    ours = {type(module) for module in model.modules() if type(module).__module__.startswith("cook.")}
    made = {LowRank, Apart, Residual, FactorisedEmbedding, FactorisedHead, TransposedLinear}
    assert ours <= {IntLinear, *made}
    assert hooks(model) == {}


@every_case
def test_it_is_all_in_the_report(result: CaseResult) -> None:
    run = result.resumed
    rows = pass_rows(run.passes, run.outcome)
    assert [row.name for row in rows] == [name for name, _ in result.case.passes]
    assert len({row.id for row in rows}) == len(rows)
    for row, each in zip(rows, run.passes, strict=True):
        value = json.loads(json.dumps(asdict(row)))
        states = value["states"]
        assert [state["when"] for state in states] == ["attached", "start", "end", "finished"]
        assert [state["step"] for state in states] == [
            0,
            each.window.start,
            each.window.end,
            pass_matrix.STEPS,
        ]
        for state in states:
            assert state.keys() >= FIGURES
            assert state["macs"] > 0
            assert {"accuracy", "loss"} <= state["metrics"].keys()
        assert (value["before"], value["after"]) == (states[0], states[-1])
        windowed = hasattr(each.options, "start")
        assert value["window"] == ([each.window.start, each.window.end - 1] if windowed else None)
        assert value["facts"] == run.outcome.facts[each.id]
        note = value["facts"]["note"]
        assert note
        assert len(note) <= 125
        assert not re.search(r"\w_\w|\de[+-]?\d", note), note
        assert note[0].islower() or note[0].isdigit()
    assert run.outcome.after["bytes"] == folder.weight_bytes(result.folder)
    trained = run.outcome.train
    assert trained is not None
    assert [point["step"] for point in trained["history"] if "loss" in point] == [2, 4, 6]


@every_case
def test_it_reloads_in_a_fresh_process(result: CaseResult, reloaded: dict[str, Any]) -> None:
    if reloaded["plain"] or not _integers(result.case):
        assert reloaded["exact"]
    assert reloaded["max_rel_difference"] <= INTEGERS_MAY_DIFFER


def _integers(case: Case) -> bool:
    return any(registered()[name].phase == "precision" for name, _ in case.passes)


@every_case
def test_transformers_alone_loads_plain_folders_and_refuses_the_others(
    result: CaseResult, reloaded: dict[str, Any], clean_processes: Strangers
) -> None:
    refusal = clean_processes.refusal(auto_class(result.case), result.folder)
    assert (refusal is None) == reloaded["plain"], refusal


@pytest.mark.parametrize("case", CONFLICTS, ids=str)
def test_a_declared_conflict_is_refused_before_anything_runs(
    case: Case, resources: Resources, tmp_path: Path
) -> None:
    with pytest.raises(CookError) as caught:
        run_case(case, resources, tmp_path)
    assert caught.value.where is not None
    assert "passes[" in caught.value.where
    assert caught.value.hint


NOT_APPLICABLE = [
    (name, family) for name in registered() for family in tiny.FAMILIES if not applies_to(name, family)
]


@pytest.mark.parametrize(("name", "family"), NOT_APPLICABLE)
def test_a_pass_is_refused_on_models_that_it_is_not_for(
    name: str, family: str, resources: Resources, tmp_path: Path
) -> None:
    case = Case(family, ((name, 0),))
    with pytest.raises(CookError) as caught:
        run_case(case, resources, tmp_path)
    assert "passes[0]" in (caught.value.where or "")
    config = {"version": 1, "passes": pass_cases.listed(case, trains=False)}
    with pytest.raises(CookError) as caught:
        cook.apply(tiny.model(family), config, tokenizer=tiny.tokenizer())
    assert "passes[0]" in (caught.value.where or "")
