"""Every registered pass over every family, and in pairs: a pass joins by being registered."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import cook
from cook.errors import CookError
from cook.model import folder
from cook.model.factored import Apart, LowRank
from cook.model.integer import IntLinear
from cook.model.measure import tally
from cook.model.verify import Case as Saved
from cook.model.verify import verify_all
from cook.passes import registered
from cook.pipeline.deliver import INTEGERS_MAY_DIFFER
from cook.pipeline.folding import outputs
from cook.pipeline.rows import pass_rows
from cook.train.tasks import find
from tests import kitchen, tiny
from tests.kitchen import Case, Dish, serves
from tests.traces import differences, hooks

REFUSED = {
    *(
        (name, name)
        for name in (
            *("quant.qat", "prune.heads", "prune.neurons", "prune.units", "prune.structured"),
            *("prune.layers", "prune.layerdrop", "prune.vocabulary", "lowrank.linear"),
        )
    ),
    *(
        pair
        for name in ("prune.heads", "prune.neurons")
        for other in ("prune.structured", "prune.units")
        for pair in ((name, other), (other, name))
    ),
    ("prune.units", "prune.structured"),
    ("prune.structured", "prune.units"),
    ("prune.layers", "distill.minilm"),
    ("distill.minilm", "prune.layers"),
    *((name, "prune.layerdrop") for name in ("distill.minilm", "distill.tinybert")),
    *(("prune.layerdrop", name) for name in ("distill.minilm", "distill.tinybert")),
}
"""Ordered pairs that are refused before anything runs: both act on the same, or one on a layer left out."""
CASES = kitchen.cases(whole="COOK_WHOLE_MATRIX" in os.environ)
COOKED = [case for case in CASES if tuple(name for name, _ in case.passes) not in REFUSED]
FIGURES = {"parameters", "zeros", "sparsity", "bytes", "macs", "metrics", "removed"}

STRANGER = """
import json, sys
import transformers
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
for auto_class, folder in json.load(sys.stdin):
    try:
        getattr(transformers, auto_class).from_pretrained(folder)
    except Exception as error:
        assert "cook" not in sys.modules, "cook was imported"
        print(json.dumps(str(error)))
    else:
        print(json.dumps(None))
"""


class Dishes:
    """Cooks each case when it is first asked for."""

    def __init__(self, root: Path):
        self.pantry = kitchen.Pantry(root)
        self.cooked: dict[Case, Dish] = {}

    def __getitem__(self, case: Case) -> Dish:
        if case not in self.cooked:
            self.cooked[case] = kitchen.cook(case, self.pantry, self.pantry.root / str(case))
        return self.cooked[case]


@pytest.fixture(scope="module")
def dishes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dishes]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("kitchen")
        patch.setenv("COOK_CACHE", str(root / "cache"))
        yield Dishes(root)


@pytest.fixture(scope="module")
def reloaded(dishes: Dishes) -> dict[Case, dict[str, Any]]:
    """What every saved folder gives in a fresh process; one process for all of them."""
    made = [dishes[case] for case in COOKED]
    saved = [Saved(dish.folder, dish.batch, dish.expected, auto_class(dish.case.family)) for dish in made]
    return dict(zip(COOKED, verify_all(saved), strict=True))


@pytest.fixture(scope="module")
def refusals(dishes: Dishes) -> dict[Case, str | None]:
    """How a process that never imports cook fails on each folder; None where it does not."""
    order = [(auto_class(case.family), str(dishes[case].folder)) for case in COOKED]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER], input=json.dumps(order), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(COOKED, map(json.loads, done.stdout.splitlines()), strict=True))


def auto_class(family: str) -> str:
    return find(kitchen.TASKS.get(family, "text-classification")).auto_class


every_case = pytest.mark.parametrize("case", COOKED, ids=str)


@every_case
def test_the_plan_says_what_will_happen(case: Case, dishes: Dishes) -> None:
    dish = dishes[case]
    assert {parameter.device.type for parameter in dish.meta.parameters()} == {"meta"}
    planned, after = tally(dish.meta), dish.resumed.outcome.after
    said = {effect.sizes for _, effect in dish.planned}
    if "about" in said:
        assert after["parameters"] < tally(tiny.model(case.family)).parameters
    elif "at most" in said:
        assert planned.parameters > after["parameters"]
        assert planned.bytes > after["bytes"]
    else:
        assert (planned.parameters, planned.bytes) == (after["parameters"], after["bytes"])
    source = set(dict(tiny.model(case.family).named_parameters()))
    # A pass may act on what one before it makes.
    factorised = [edit.module for _, effect in dish.planned for edit in effect.edits if edit.op == "lowrank"]
    source |= {f"{name}.{factor}.weight" for name in factorised for factor in ("up", "down")}
    for each, effect in dish.planned:
        assert set(effect.parameters) <= source, each.id
        # Of what leaves nobody knows the zeros before.
        assert effect.zeros <= after["zeros"] or "at most" in said
        assert effect.note


@every_case
def test_a_resumed_run_ends_in_the_same_bits(case: Case, dishes: Dishes) -> None:
    dish = dishes[case]
    for state in dish.kept:
        state["run"].pop("seconds")
    assert list(differences(*dish.kept)) == []
    whole, resumed = dish.whole, dish.resumed
    assert list(differences(whole.model.state_dict(), resumed.model.state_dict())) == []
    optimizers = whole.loop.optimizer.state_dict(), resumed.loop.optimizer.state_dict()
    assert list(differences(*optimizers)) == []
    assert list(differences(whole.loop.history, resumed.loop.history)) == []
    assert whole.outcome.facts == resumed.outcome.facts
    assert whole.outcome.states == resumed.outcome.states
    assert whole.outcome.after == resumed.outcome.after


@every_case
def test_training_moved_the_model(case: Case, dishes: Dishes) -> None:
    dish = dishes[case]
    source = tiny.model(case.family).state_dict()
    trained = dish.kept[0]["session"]["module"]
    names = [name for name in source if f"model.{name}" in trained]  # without layers that were left out
    moved = [name for name in names if not torch.equal(trained[f"model.{name}"], source[name])]
    assert len(moved) > len(names) // 2


@every_case
def test_a_finished_model_is_plain(case: Case, dishes: Dishes) -> None:
    # That no hook is left, on modules or on the optimizer, is asserted at the end of each run.
    model = dishes[case].resumed.model
    ours = {type(module) for module in model.modules() if type(module).__module__.startswith("cook.")}
    assert ours <= {IntLinear, LowRank, Apart}
    assert hooks(model) == {}


@every_case
def test_it_is_all_in_the_report(case: Case, dishes: Dishes) -> None:
    dish = dishes[case]
    run = dish.resumed
    rows = pass_rows(run.passes, run.outcome)
    assert [row.name for row in rows] == [name for name, _ in case.passes]
    assert len({row.id for row in rows}) == len(rows)
    for row, each in zip(rows, run.passes, strict=True):
        value = json.loads(json.dumps(asdict(row)))
        states = value["states"]
        assert [state["when"] for state in states] == ["attached", "start", "end", "finished"]
        assert [state["step"] for state in states] == [0, each.window.start, each.window.end, kitchen.STEPS]
        for state in states:
            assert state.keys() >= FIGURES
            assert state["macs"] > 0
            assert {"accuracy", "loss"} <= state["metrics"].keys()
        assert (value["before"], value["after"]) == (states[0], states[-1])
        windowed = "start" in each.options
        assert value["window"] == ([each.window.start, each.window.end - 1] if windowed else None)
        assert value["facts"] == run.outcome.facts[each.id]
    assert run.outcome.after["bytes"] == folder.weight_bytes(dish.folder)
    told = run.outcome.train
    assert told is not None
    assert [entry["step"] for entry in told["history"] if "loss" in entry] == [2, 4, 6]


@every_case
def test_it_reloads_in_a_fresh_process(case: Case, reloaded: dict[Case, dict[str, Any]]) -> None:
    found = reloaded[case]
    if found["plain"] or not _integers(case):
        assert found["exact"]
    assert found["max_rel_difference"] <= INTEGERS_MAY_DIFFER


def _integers(case: Case) -> bool:
    return any(registered()[name].phase == "precision" for name, _ in case.passes)


@every_case
def test_a_stranger_loads_plain_folders_and_is_refused_the_others(
    case: Case, reloaded: dict[Case, dict[str, Any]], refusals: dict[Case, str | None]
) -> None:
    assert (refusals[case] is None) == reloaded[case]["plain"], refusals[case]


@pytest.mark.parametrize("case", [case for case in CASES if case not in COOKED], ids=str)
def test_a_conflict_is_refused_in_the_plan(case: Case, dishes: Dishes) -> None:
    with pytest.raises(CookError) as caught:
        dishes[case]
    assert caught.value.where is not None
    assert "passes[" in caught.value.where
    assert caught.value.hint


TRAINED = {("quant.qat", 1)}
"""Examples with an option that needs training, where the pass itself does not."""
EXAMPLES = [(name, number) for name, cls in registered().items() for number in range(len(cls.examples))]
UNSERVED = [(name, family) for name in registered() for family in tiny.FAMILIES if not serves(name, family)]


@pytest.mark.parametrize(("name", "family"), UNSERVED)
def test_a_pass_is_refused_on_models_that_it_is_not_for(name: str, family: str, dishes: Dishes) -> None:
    case = Case(family, ((name, 0),))
    with pytest.raises(CookError) as caught:
        dishes[case]
    assert "passes[0]" in (caught.value.where or "")
    config = {"version": 1, "passes": kitchen.steps(case, trains=False)}
    with pytest.raises(CookError) as caught:
        cook.apply(tiny.model(family), config, tokenizer=tiny.tokenizer())
    assert "passes[0]" in (caught.value.where or "")


def present(case: Case) -> dict[str, Any]:
    """A teacher, calibration examples and a tokenizer, where the passes want them."""
    wants = kitchen.wants(case)
    found: dict[str, Any] = {"teacher": "self"} if "teacher" in wants else {}
    if "calibration" in wants:
        found["calibration"] = [tiny.batch(case.family, size=16, seed=seed) for seed in range(2)]
    if "tokenizer" in wants:
        found["tokenizer"] = tiny.tokenizer()
    return found


def texts() -> dict[str, Any]:
    """Rows of all words, for passes that read the run's own texts."""
    said = " ".join(kitchen.SPOKEN)
    return {"train": [{"sentence": said, "label": label} for label in ("negative", "positive")]}


SERVED = [
    (name, number, family) for name, number in EXAMPLES for family in tiny.FAMILIES if serves(name, family)
]


@pytest.mark.parametrize(("name", "number", "family"), SERVED)
def test_apply_acts_at_once_or_says_what_it_needs(name: str, number: int, family: str) -> None:
    model = tiny.model(family).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    case = Case(family, ((name, number),))
    config = {"version": 1, "passes": kitchen.steps(case, trains=False)}
    wants, given = kitchen.wants(case), present(case)
    if "calibration" in wants and "training" not in wants:
        with pytest.raises(CookError, match="needs examples to look at") as caught:
            cook.apply(model, config)
        assert "passes[0]" in (caught.value.where or "")
    if "tokenizer" in wants:
        given["data"] = texts()
    if "training" in wants or (name, number) in TRAINED:
        with pytest.raises(CookError, match="needs training") as caught:
            cook.apply(model, config, **given)
        assert "passes[0]" in (caught.value.where or "")
        assert list(differences(before, model.state_dict())) == []
    else:
        result = cook.apply(model, config, **given)
        assert result.model is model
        (row,) = result.report.passes
        assert row.facts
        assert row.after.bytes < row.before.bytes or row.after.zeros > row.before.zeros
    assert hooks(model) == {}


@pytest.mark.parametrize(("name", "number"), EXAMPLES)
def test_attach_serves_a_loop_of_ones_own(name: str, number: int, tmp_path: Path) -> None:
    served = [family for family in tiny.FAMILIES if serves(name, family)]
    family = served[EXAMPLES.index((name, number)) % len(served)]
    model = tiny.model(family).train()
    case = Case(family, ((name, number),))
    given = present(case)
    if "teacher" in given:
        given["teacher"] = copy.deepcopy(model)
    passes = kitchen.steps(case)
    if "tokenizer" in given:
        (tmp_path / "words.txt").write_text(" ".join(kitchen.SPOKEN), encoding="utf-8")
        passes[0][name]["corpora"] = [str(tmp_path / "words.txt")]
    config = {"version": 1, "passes": passes}
    batch = tiny.batch(family)
    with cook.attach(model, config, total_steps=4, **given) as session:
        optimizer = torch.optim.AdamW(session.module.parameters(), lr=0.01)
        session.bind(optimizer)
        for step in range(4):
            session.before_step(step)
            terms = session.module(batch)
            assert "task" in terms
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
            session.after_step()
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        numbers = session.renumbering
        trained = outputs(model, numbers.known(inputs) if numbers else inputs)["logits"]
        session.finish()
        inputs = numbers(inputs) if numbers else inputs
    assert session.facts.keys() == {name}
    assert hooks(model) == {}
    assert torch.allclose(outputs(model, inputs)["logits"], trained, atol=1e-5)
