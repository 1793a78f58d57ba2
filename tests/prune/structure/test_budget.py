"""Pruning to a budget: what is asked for is left and not more, whatever the cost is counted in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import cook
from cook.data.calibration import given
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.units import heads, neurons, units
from cook.model.probe.measure import macs, tally
from cook.pipeline.plan import plan_passes
from cook.prune.structure import cost
from cook.prune.structure.importance import gradient_importance
from tests.helpers import bound, families, tiny

BATCH = tiny.batch(size=8, seed=5)
EXAMPLES = given([BATCH])
INPUTS = {name: value[:1] for name, value in BATCH.items() if name != "labels"}


def pruned(model: Any, budget: dict[str, Any], name: str = "prune.units", **options: Any) -> dict[str, Any]:
    """The pass's facts, after it pruned the model at once."""
    session = bound.session(model, {name: {"budget": budget, **options}}, steps=0, calibration=EXAMPLES)
    session.finish()
    return session.facts[name]


@pytest.mark.parametrize("importance", ["fisher", "gradient", "magnitude", "random"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_macs_are_left_as_asked_for(importance, share):
    model = tiny.model(layers=3)
    whole = macs(model, INPUTS)
    facts = pruned(model, {"macs": share}, importance=importance, multiple=1)
    left = macs(model, INPUTS) / whole
    assert facts["reached"] == pytest.approx(left, abs=1e-6)
    counted = cost.multiply_accumulates(tiny.model(), units(Anatomy(tiny.model())), INPUTS)
    largest = max(float(curve[1]) for curve in counted.curves)
    assert share - largest / whole < left <= share
    assert facts["goal"] == "macs"
    assert facts["asked"] == share


@pytest.mark.parametrize("name", ["prune.heads", "prune.neurons", "prune.units"])
def test_each_pass_takes_only_what_is_its_own(name):
    model = tiny.model(layers=3, width=32)
    whole = tally(model).parameters
    before = {kind: [each.count for each in those(Anatomy(model))] for kind, those in KINDS.items()}
    facts = pruned(model, {"parameters": 0.85}, name)
    after = {kind: [each.count for each in those(Anatomy(model))] for kind, those in KINDS.items()}
    changed = {kind for kind in KINDS if before[kind] != after[kind]}
    assert changed <= ({name.removeprefix("prune.")} if name != "prune.units" else set(KINDS))
    assert facts["reached"] == pytest.approx(tally(model).parameters / whole)
    assert facts["reached"] <= 0.85


KINDS = {"heads": heads, "neurons": neurons}


@pytest.mark.parametrize("family", families.ALL)
def test_every_family_is_pruned_to_a_budget(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    batch = families.batch(family)
    session = bound.session(
        model,
        {"prune.units": {"budget": {"macs": 0.8}, "multiple": 1}},
        steps=0,
        calibration=given([batch]),
    )
    one = {name: value[:1] for name, value in batch.items() if name != "labels"}
    whole = macs(model, one)
    session.finish()
    assert macs(model, one) / whole <= 0.8
    assert session.facts["prune.units"]["reached"] == pytest.approx(macs(model, one) / whole, abs=1e-6)


def test_squared_gradients_are_those_of_one_example_at_a_time():
    model = tiny.model()
    both = units(Anatomy(model))
    found = gradient_importance(model, [BATCH], both, power=2)
    singles = [
        gradient_importance(model, [{name: value[row : row + 1] for name, value in BATCH.items()}], both)
        for row in range(8)
    ]
    for number, each in enumerate(found):
        wanted = torch.stack([single[number].square() for single in singles]).mean(0)
        torch.testing.assert_close(each, wanted, rtol=1e-4, atol=1e-9)


def test_the_budget_shrinks_with_the_steps_and_what_is_gone_stays_gone():
    model = tiny.model(layers=3)
    options = {"budget": {"macs": 0.5}, "schedule": "linear", "every": 2, "end": 8, "multiple": 1}
    session = bound.session(model, {"prune.units": options}, calibration=EXAMPLES)
    (each,) = session.passes
    shares, kept = [], [stays.clone() for stays in each.keep]
    for _ in bound.steps(session, 10):
        assert each.cost is not None
        shares.append(each.cost.of([int(stays.sum()) for stays in each.keep]) / each.cost.whole)
        assert all(bool((before | ~after).all()) for before, after in zip(kept, each.keep, strict=True))
        kept = [stays.clone() for stays in each.keep]
    bounds = [1, 1, 0.875, 0.875, 0.75, 0.75, 0.625, 0.5, 0.5, 0.5]
    assert all(
        share <= bound_ and share > bound_ - 0.02 for share, bound_ in zip(shares, bounds, strict=True)
    )
    before = bound.logits(model)
    session.finish()
    torch.testing.assert_close(bound.logits(model), before, rtol=0, atol=1e-6)


def in_steps(models: Any, batch: Any, **_: Any) -> Any:
    """A clock for tests: 2 ms, and 1 for every 16 neurons begun; heads are free."""
    return {
        name: {"median": 2.0 + sum(-(-each.count // 16) for each in neurons(Anatomy(model)))}
        for name, model in models.items()
    }


def test_time_is_shared_out_over_the_layers(monkeypatch):
    monkeypatch.setattr(cost, "latency", in_steps)
    model = tiny.model(width=32)  # two layers of 64 neurons
    found = cost.milliseconds(lambda: copy.deepcopy(model), units, INPUTS, points=4)
    assert found.goal == "latency"
    assert found.whole == pytest.approx(10)
    for curve in found.curves[:2]:
        assert curve.tolist() == [0] * 5
    for curve in found.curves[2:]:
        # One neuron takes as long as sixteen, so that nothing is saved below them.
        assert [float(curve[count]) for count in (1, 16, 32, 48, 64)] == pytest.approx([0, 0, 1, 2, 3])


def test_a_clock_that_wavers_gives_curves_that_rise(monkeypatch):
    shaken = iter(torch.rand(100, generator=torch.Generator().manual_seed(0)).tolist())

    def wavering(models, batch, **_):
        return {name: {"median": 3 + next(shaken)} for name in models}

    monkeypatch.setattr(cost, "latency", wavering)
    found = cost.milliseconds(tiny.model, units, INPUTS)
    assert all(bool((curve.diff() >= 0).all()) for curve in found.curves)
    assert all(float(curve[0]) == 0 for curve in found.curves)
    assert found.rest >= 0


def test_a_real_clock_is_read():
    found = cost.milliseconds(lambda: tiny.model(width=32), units, INPUTS, points=2)
    assert found.whole > 0
    assert all(bool((curve.diff() >= 0).all()) for curve in found.curves)


def a_table(build, choose, batch, **_):
    """Heads are free, and neurons cost in steps of 16."""
    assert len(next(iter(batch.values()))) == 2
    curves = [
        torch.div(torch.arange(each.count + 15), 16, rounding_mode="floor")[14:].double()
        * (each.kind == "neurons")
        for each in choose(Anatomy(build()))
    ]
    return cost.Cost("latency", curves, {}, 2.0)


def test_a_budget_of_time_is_met_by_what_was_measured(monkeypatch):
    model = tiny.model(width=32)
    monkeypatch.setattr(cost, "milliseconds", a_table)
    monkeypatch.setattr(cost, "latency", in_steps)
    facts = pruned(model, {"latency": 0.61, "device": "cpu", "batch": 2})
    assert facts["reached"] == pytest.approx(0.6)  # 10 before: 2, and 4 for each FFN
    assert facts["foretold"] == pytest.approx(0.6)
    left = facts["left"]
    assert [count for where, count in left.items() if "attention" in where] == [4, 4]  # worth nothing to lose
    assert sum(count for where, count in left.items() if "attention" not in where) == 64


@pytest.mark.parametrize(("sixteen", "reached"), [(1.0, 0.8), (1.5, 0.7), (8.0, 0.4)])
def test_less_is_asked_of_a_table_that_promises_too_much(monkeypatch, sixteen, reached):
    """The clock sees `sixteen` times less saved than the table says; at worst all goes that can."""
    timed = []

    def clock(models, batch, **_):
        true = in_steps(models, batch)
        timed.append({name: 10 - (10 - each["median"]) / sixteen for name, each in true.items()})
        return {name: {"median": each} for name, each in timed[-1].items()}

    monkeypatch.setattr(cost, "milliseconds", a_table)
    monkeypatch.setattr(cost, "latency", clock)
    facts = pruned(tiny.model(width=32), {"latency": 0.8, "device": "cpu", "batch": 2})
    assert facts["foretold"] == pytest.approx(reached)
    assert facts["reached"] == pytest.approx(1 - (1 - reached) / sixteen) == timed[-1]["other"] / 10
    assert len(timed) == 1 if sixteen == 1 else len(timed) > 1


def test_a_measured_table_survives_an_interrupt(monkeypatch):
    """The second clock says that nearly nothing can be saved: what counts is the first one's table."""
    rests = iter([1.0, 300.0, 300.0])

    def timed(build, choose, batch, **_):
        curves = [torch.arange(each.count + 1.0, dtype=torch.float64) for each in choose(Anatomy(build()))]
        return cost.Cost("latency", curves, {}, next(rests))

    monkeypatch.setattr(cost, "milliseconds", timed)
    item = {"prune.units": {"budget": {"latency": 0.5}, "end": 4, "every": 1}}
    first, second, third = (bound.session(tiny.model(), item, calibration=EXAMPLES) for _ in range(3))
    for step in range(2):
        first.before_step(step)
    second.load_state_dict(first.state_dict())
    for step in range(2, 5):
        first.before_step(step)
        second.before_step(step)
    (one,), (other,) = first.passes, second.passes
    assert one.cost.whole == other.cost.whole
    assert all(torch.equal(a, b) for a, b in zip(one.keep, other.keep, strict=True))
    assert any(not bool(stays.all()) for stays in one.keep)
    with pytest.raises(CookError, match="of the latency cannot be met"):
        third.before_step(4)


@pytest.mark.parametrize("importance", ["magnitude", "random"])
def test_what_knows_no_cost_does_not_strip_one_kind_first(importance):
    model = tiny.model(layers=3, width=32)
    pruned(model, {"macs": 0.6}, importance=importance, multiple=1)
    left = [
        sum(each.count for each in those(Anatomy(model)))
        / sum(each.count for each in those(Anatomy(tiny.model(layers=3, width=32))))
        for those in KINDS.values()
    ]
    assert all(0.35 < share < 0.85 for share in left)


def test_scores_that_say_nothing_are_refused():
    model = tiny.model()
    with torch.no_grad():
        model.classifier.weight.zero_()
    with pytest.raises(CookError, match="say nothing of what matters") as told:
        pruned(model, {"macs": 0.7})
    assert told.value.where.endswith("importance")


def test_without_examples_nothing_can_be_counted():
    with pytest.raises(CookError, match="no examples to count") as told:
        bound.session(
            tiny.model(),
            {"prune.units": {"budget": {"macs": 0.7}, "importance": "magnitude"}},
            steps=0,
            calibration=given([]),
        )
    assert "calibration" in told.value.hint


def test_a_decoder_is_counted_by_what_it_is_asked_for():
    config = T5Config(vocab_size=23, d_model=16, d_kv=4, num_heads=4, d_ff=32, num_layers=2, pad_token_id=0)
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config)
    batch = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    session = bound.session(
        model,
        {"prune.units": {"budget": {"macs": 0.8}, "multiple": 1}},
        steps=0,
        calibration=given([{**batch, "labels": batch["input_ids"]}]),
    )
    session.finish()
    assert 0.7 < session.facts["prune.units"]["reached"] <= 0.8


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"latency": 0.5}, {"parameters": 0.6}])
def test_the_plan_is_an_estimate_and_says_so(budget):
    options = {"budget": budget, "importance": "random", "multiple": 1}
    with torch.device("meta"):
        model = tiny.model(layers=3, width=64)
    ((_, effect),) = plan_passes(model, bound.passes({"prune.units": options}))
    assert effect.sizes == "about"
    assert effect.note.startswith("about ")
    if "latency" not in budget:
        real = tiny.model(layers=3, width=64)
        pruned(real, budget, importance="random", multiple=1)
        assert tally(model).parameters == pytest.approx(tally(real).parameters, rel=0.1)


def test_the_plan_does_not_refuse_what_it_can_only_guess():
    with torch.device("meta"):
        model = tiny.model(layers=3)
    plan_passes(model, bound.passes({"prune.units": {"budget": {"latency": 0.01}}}))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"prune.units": {"budget": {"macs": 0.005}}}, r"0\.005 of the macs cannot be met: at least 0\.2"),
        ({"prune.heads": {"budget": {"macs": 0.1}}}, r"0\.1 of the macs cannot be met"),
        ({"prune.neurons": {"budget": {"macs": 0.1}}}, r"0\.1 of the macs cannot be met"),
        ({"prune.structured": {"budget": {"macs": 0.01}}}, r"0\.01 of the macs cannot be reached"),
    ],
)
def test_the_plan_refuses_what_a_run_refuses_and_its_hint_can_be_met(item, message):
    with torch.device("meta"):
        model = tiny.model(layers=3)
    with pytest.raises(CookError, match=message) as told:
        plan_passes(copy.deepcopy(model), bound.passes(item))
    nearest = float(told.value.hint.split()[2])
    ((name, options),) = item.items()
    enough = {name: {**options, "budget": {"macs": nearest}}}
    plan_passes(copy.deepcopy(model), bound.passes(enough))
    bound.session(tiny.model(layers=3), enough, calibration=EXAMPLES).close()
    with pytest.raises(CookError, match="cannot be"):
        bound.session(tiny.model(layers=3), item, calibration=EXAMPLES)


@pytest.mark.parametrize(
    ("item", "message", "hint"),
    [
        (
            {"prune.units": {"budget": {"macs": 0.5, "latency": 0.5}}},
            "expected one of parameters, macs and latency, found macs and latency",
            "macs: 0.3",
        ),
        ({"prune.units": {"budget": {"macs": 0.5, "batch": 4}}}, "means nothing with macs", "leave it out"),
        ({"prune.heads": {"budget": {"parameters": 0.9}, "limit": 0.1}}, "cannot be met", "next to nothing"),
        (
            {"prune.heads": {"sparsity": 0.5, "scope": "layer", "normalize": True}},
            "only compared within a layer",
            "leave it out",
        ),
        ({"prune.heads": {}}, "expected either a sparsity or a budget", "sparsity: 0.5"),
        ({"prune.heads": {"sparsity": 0.5, "budget": {"macs": 0.5}}}, "expected either", "sparsity: 0.5"),
        ({"prune.neurons": {"budget": {"macs": 0.5}, "scope": "layer"}}, "all layers are compared", "leave"),
        ({"prune.units": {"budget": {"parameters": 0.1}}}, "0.1 of the parameters cannot be met", "ask for"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(item, message, hint):
    with torch.device("meta"):
        model = tiny.model()
    with pytest.raises(CookError, match=message) as told:
        plan_passes(model, bound.passes(item))
    assert hint in told.value.hint


def test_the_nearest_budget_is_named_and_can_be_met():
    with pytest.raises(CookError, match=r"0\.05 of the macs cannot be met") as told:
        pruned(tiny.model(), {"macs": 0.05})
    nearest = float(told.value.hint.split()[2])
    facts = pruned(tiny.model(), {"macs": nearest})
    assert facts["reached"] <= nearest
    assert nearest - facts["reached"] < 0.002


def test_apply_prunes_to_a_budget():
    model = tiny.model(layers=3)
    before = macs(model, INPUTS)
    config = {"version": 1, "passes": [{"prune.units": {"budget": {"macs": 0.6}, "multiple": 1}}]}
    result = cook.apply(model, config, calibration=[BATCH])
    assert macs(result.model, INPUTS) <= 0.6 * before


def test_what_earlier_passes_did_is_in_the_time(monkeypatch):
    monkeypatch.setattr(cost, "latency", in_steps)
    passes = (
        {"prune.layers": {"keep": [0, 2]}},
        {"prune.units": {"budget": {"latency": 0.8}, "multiple": 1}},
    )
    session = bound.session(tiny.model(layers=3, width=32), *passes, steps=0, calibration=EXAMPLES)
    session.finish()
    assert session.model.config.num_hidden_layers == 2
    facts = session.facts["prune.units"]
    assert facts["reached"] <= 0.8  # of 10 ms: 8 are left, which is 6 for the neurons of the two layers
    assert sum(count for where, count in facts["left"].items() if "attention" not in where) <= 96
