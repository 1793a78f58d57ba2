"""Gates at work: their gradients, what they leave, and that they reach their goal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cook.data.calibration import given
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.depth import droppable, skips
from cook.model.probe.measure import Tally, macs, tally
from cook.pipeline.plan import plan_passes
from cook.prune.structure import cost
from cook.prune.structure.gating import fold
from cook.session import Session
from tests.helpers import bound, families, tiny
from tests.helpers.processes import two
from tests.helpers.traces import hooks

EXAMPLES = given([tiny.batch(size=8, seed=5)])
ALL = ["layers", "heads", "neurons"]
UNDROPPED = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
"""Settings without the noise of dropout."""


def session(model: Any, *others: Any, **options: Any) -> Session:
    """One of four steps, whose gates learn in the first two at the rate they are given."""
    found = {"budget": {"parameters": 0.8}, "gates": ALL, "end": 2, "speed": 1, **options}
    return bound.session(model, {"prune.structured": found}, *others, steps=4, calibration=EXAMPLES)


def spread(structured: Any, *, seed: int = 0, size: float = 2.0) -> None:
    """Gates anywhere, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    assert structured.gates.speed == 1
    moved = structured.gates.moved
    with torch.no_grad():
        moved.copy_(size * torch.randn(moved.shape, generator=generator, dtype=torch.float64) - 3)


@torch.no_grad()
def finished(bounded: Session, batch: dict[str, Tensor]) -> tuple[Tally, Tensor, Tensor]:
    """What was counted before a session finished, and what the model said then and said afterwards."""
    held, before = tally(bounded.model, None, bounded.masks), bounded.model(**batch).logits
    bounded.finish()
    return held, before, bounded.model(**batch).logits


def some_gates(family: str) -> list[str]:
    try:
        attention = families.ATTENTION.get(family, "sdpa")
        droppable(Anatomy(families.made(family, attention, device="meta")))
    except CookError:
        return ALL[1:]
    return ALL


@pytest.mark.parametrize("family", families.ALL)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_is_held_equals_what_is_taken_out(family, attention):
    model = families.made(family, families.ATTENTION.get(family, attention))
    gates, batch = some_gates(family), families.batch(family)
    whole = sum(each.numel() for each in model.parameters())
    bare = cost.parameters(model, _units(model)).rest / whole
    asked = bare + 0.4 * (1 - bare)
    bounded = session(model, budget={"parameters": asked}, gates=gates)
    (structured,) = bounded.passes
    bounded.before_step(0)
    spread(structured, seed=1)
    bounded.before_step(2)
    held, before, after = finished(bounded, batch)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert hooks(model) == {}
    left = tally(model)
    assert (held.parameters, held.bytes) == (left.parameters, left.bytes)
    facts = bounded.facts["prune.structured"]
    assert facts["reached"] == pytest.approx(left.parameters / whole)
    assert facts["reached"] <= asked
    assert all(count >= 1 for count in facts["left"].values())
    assert len(facts["layers"]) == len(Anatomy(model).layers)


def _units(model: Any) -> list[Any]:
    from cook.model.arch.units import units

    return units(Anatomy(model))


def _task(bounded: Session, family: str, step: int = 0) -> Tensor:
    bounded.before_step(step)
    return bounded.module(families.batch(family))["task"]


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_task_reaches_the_gates_as_finite_differences_say(family):
    model = families.made(family, dtype=torch.float64, **UNDROPPED.get(family, {}))
    bounded = session(model)
    (structured,) = bounded.passes
    model.train()
    bounded.before_step(0)
    spread(structured, seed=3, size=1.0)
    moved = structured.gates.moved
    (slopes,) = torch.autograd.grad(_task(bounded, family), moved)
    layers, heads, neurons = slopes[:2], slopes[2:6], slopes[-64:]
    assert all(bool((part != 0).any()) for part in (layers, heads, neurons))
    step = 1e-6
    for index in range(len(moved)):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                moved[index] += sign * step
                losses.append(float(_task(bounded, family)))
                moved[index] -= sign * step
        found = (losses[0] - losses[1]) / (2 * step)
        assert float(slopes[index]) == pytest.approx(found, rel=1e-4, abs=1e-8)


def test_the_teacher_reaches_the_gates_too():
    model = tiny.model().train()
    options = {"budget": {"parameters": 0.8}, "gates": ALL, "speed": 1}
    bounded = bound.session(model, {"prune.structured": options}, "distill.logits", teacher="self")
    bounded.before_step(0)
    spread(bounded.passes[0], seed=3, size=1.0)
    term = bounded.module(tiny.batch())["logits"]
    (slopes,) = torch.autograd.grad(term, bounded.passes[0].gates.moved)
    assert int((slopes != 0).sum()) > len(slopes) / 4


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit", "bart", "deberta-v2"])
def test_a_layer_whose_gate_is_shut_is_skipped(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    batch = families.batch(family)
    bounded = session(model)
    (structured,) = bounded.passes
    bounded.before_step(0)
    with torch.no_grad():
        dense = model(**batch).logits
        structured.gates.moved[1] = -100
        shut = model(**batch).logits
    bounded.close()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, dense)  # open gates change nothing
        Blueprint(edits=skips(Anatomy(model), [Anatomy(model).layers[1]])).apply(model)
        assert torch.equal(model(**batch).logits, shut)


def test_what_is_learned_inside_is_what_the_next_layer_gets():
    model = families.made("bert")
    same = {"distill.hidden": {"map": {"layers[0].output": "layers[0].input"}}}
    options = {"budget": {"parameters": 0.8}, "gates": ALL, "speed": 1}
    bounded = bound.session(model, {"prune.structured": options}, same, teacher="self")
    bounded.before_step(0)
    assert float(bounded.module(families.batch("bert"))["hidden"].detach()) > 0.1
    with torch.no_grad():
        bounded.passes[0].gates.moved[0] = -100
    assert float(bounded.module(families.batch("bert"))["hidden"].detach()) == 0


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_gates_go_into_the_weights_that_read_their_units(family):
    model, batch = families.made(family), families.batch(family)
    bounded = session(model, gates=ALL[1:])
    (structured,) = bounded.passes
    bounded.before_step(0)
    spread(structured)
    with torch.no_grad():
        before = model(**batch).logits
    values = structured.gates.split((torch.sigmoid(structured.gates.loga) * 1.2 - 0.1).clamp(0, 1))
    bounded.close()
    for units, gate in zip(structured.units, values[1:], strict=True):
        fold(model, units, gate.detach())
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, before, rtol=1e-4, atol=1e-5)


def test_each_forward_draws_anew_and_each_step_the_same_again():
    model = families.made("bert", **UNDROPPED["bert"]).train()
    bounded = session(model)
    spread(bounded.passes[0])
    torch.manual_seed(0)
    first = [_task(bounded, "bert"), bounded.module(families.batch("bert"))["task"]]
    torch.manual_seed(1)
    again = [_task(bounded, "bert"), bounded.module(families.batch("bert"))["task"]]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], _task(bounded, "bert", 1))
    model.eval()
    assert torch.equal(_task(bounded, "bert"), _task(bounded, "bert", 1))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_layers_that_are_computed_again_meet_the_same_gates(family):
    model = families.made(family, **UNDROPPED.get(family, {})).train()
    bounded = session(model)
    spread(bounded.passes[0])
    found = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        bounded.module.zero_grad()
        bounded.before_step(0)
        sum(bounded.module(families.batch(family)).values()).backward()
        found.append([each.grad.clone() for each in bounded.module.parameters() if each.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_gates_learn_under_autocast():
    model = tiny.model().train()
    bounded = session(model)
    spread(bounded.passes[0], seed=3, size=1.0)
    bounded.before_step(0)
    with torch.autocast("cpu", torch.bfloat16):
        terms = bounded.module(tiny.batch())
    sum(terms.values()).backward()
    slopes = bounded.passes[0].gates.moved.grad
    assert slopes.dtype == torch.float32
    assert bool(torch.isfinite(slopes).all())
    assert int((slopes != 0).sum()) > len(slopes) / 4


@pytest.mark.parametrize("rate", [2e-5, 2e-4])
@pytest.mark.parametrize(
    ("budget", "gates"), [({"macs": 0.4}, ALL), ({"parameters": 0.6}, ALL[1:]), ({"macs": 0.75}, ALL[1:])]
)
def test_the_goal_is_reached(budget, gates, rate):
    model = tiny.model(layers=3, width=32)
    options = {"budget": budget, "gates": gates}
    bounded = bound.session(model, {"prune.structured": options}, steps=300, calibration=EXAMPLES)
    example = {name: each[:1] for name, each in tiny.batch(size=8, seed=5).items() if name != "labels"}
    before = {"macs": macs(model, example), "parameters": tally(model).parameters}
    bound.train(bounded, rate=rate)
    bounded.finish()
    after = {"macs": macs(model, example), "parameters": tally(model).parameters}
    facts = bounded.facts["prune.structured"]
    ((goal, asked),) = budget.items()
    assert facts["expected"] == pytest.approx(asked, abs=0.02)
    assert after[goal] / before[goal] == pytest.approx(facts["reached"], abs=1e-6)
    assert asked - 0.02 < facts["reached"] <= asked + 1e-8


def test_nothing_happens_before_the_window_and_weights_are_free_after_it():
    model = tiny.model()
    twin = tiny.model()
    bounded = bound.session(
        model, {"prune.structured": {"budget": {"parameters": 0.7}, "start": 2, "end": 4}}, steps=6
    )
    bounded.before_step(0)
    assert torch.equal(bound.logits(model), bound.logits(twin))
    assert set(bounded.module(tiny.batch())) == {"task"}
    bounded.before_step(2)
    assert set(bounded.module(tiny.batch())) == {"task", "budget"}
    bounded.before_step(4)
    assert set(bounded.module(tiny.batch())) == {"task"}
    (structured,) = bounded.passes
    assert structured.hard
    assert any(not stays.all() for stays in structured.keep)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    "other",
    [
        *({"prune.weights": {"sparsity": 0.5, "method": m}} for m in ("magnitude", "movement", "wanda")),
        {"prune.weights": {"sparsity": 0.5, "method": "sparsegpt", "start": 3}},
        {"quant.qat": {"weights": "int8"}},
        {"distill.hidden": {"map": {"layers[0].output": "layers[0].output"}}},
    ],
    ids=["magnitude", "movement", "wanda", "sparsegpt", "qat", "hidden"],
)
def test_layers_that_leave_take_along_what_other_passes_did_to_them(family, other):
    model = tiny.model(family)
    options = {"budget": {"parameters": 0.65}, "gates": ["layers"], "end": 2}
    examples = given([tiny.batch(family, size=16, seed=5)])
    bounded = bound.session(
        model, {"prune.structured": options}, other, steps=5, calibration=examples, teacher="self"
    )
    bound.train(bounded, family)
    before = bound.logits(model, family)
    bounded.finish()
    torch.testing.assert_close(bound.logits(model, family), before, rtol=0, atol=1e-5)
    assert len(bounded.facts["prune.structured"]["layers"]) == 1
    facts = bounded.facts.get("prune.weights", {"zeros": 1, "of": 2})
    assert facts["zeros"] == pytest.approx(facts["of"] / 2, abs=1)
    assert bounded.masks.state_dict()["structural"] == []


def test_what_is_timed_once_is_kept(monkeypatch):
    units = _units(tiny.model())

    def timed(build, choose, batch):
        assert batch["input_ids"].device.type == "cpu"
        assert [each.count for each in choose(Anatomy(build()))] == [each.count for each in units]
        bent = [torch.linspace(0, 1, each.count + 1, dtype=torch.float64).square() for each in units]
        return cost.Cost("latency", bent, {}, 1.0)

    monkeypatch.setattr(cost, "milliseconds", timed)
    bounded = session(tiny.model(), budget={"latency": 0.5, "device": "cpu"}, gates=ALL[1:])
    state = bounded.passes[0].state_dict()
    monkeypatch.setattr(
        cost, "milliseconds", lambda *_: cost.Cost("latency", [c * 2 for c in timed(*_).curves], {}, 1.0)
    )
    other = session(tiny.model(), budget={"latency": 0.5}, gates=ALL[1:])
    other.passes[0].load_state_dict(state)
    assert other.passes[0].shares.state_dict()["rest"] == state["shares"]["rest"]
    other.before_step(4)
    other.finish()
    assert other.facts["prune.structured"]["reached"] <= 0.5


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ({"budget": {"macs": 0.3, "parameters": 0.3}}, "found parameters and macs", "macs: 0.3"),
        ({"budget": {"device": "cpu"}}, "expected one of parameters, macs and latency", "macs: 0.3"),
        ({"budget": {"macs": 0.3, "device": "cpu"}}, "means nothing with macs", "latency"),
        (
            {"budget": {"parameters": 0.05}},
            r"0\.05 of the parameters cannot be reached, the least is",
            "or more",
        ),
        ({"budget": {"parameters": 0.5}, "minimum": 30}, "cannot be reached", "or more"),
        ({"budget": {"parameters": 0.99}, "minimum": 1000}, "cannot be reached", "give more `gates`"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(options, words, hint):
    with torch.device("meta"):
        model = tiny.model()
    with pytest.raises(CookError, match=words) as told:
        plan_passes(model, bound.passes({"prune.structured": options}))
    assert "passes[0]" in told.value.where
    assert hint is None or hint in told.value.hint


def test_what_cannot_be_is_refused_when_attached():
    with pytest.raises(CookError, match=r"0\.01 of the macs cannot be reached") as told:
        session(tiny.model(), budget={"macs": 0.01})
    assert told.value.where.endswith("budget.macs")
    with pytest.raises(CookError, match="in which no gate learns"):
        session(tiny.model(), start=2)
    with pytest.raises(CookError, match="which would be lost") as told:
        session(families.made("t5"))
    assert told.value.hint == "leave layers out: gates: [heads, neurons]"
    with pytest.raises(CookError, match="needs training"):
        bound.session(tiny.model(), {"prune.structured": {"budget": {"parameters": 0.8}}}, steps=0)
    model = tiny.model().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(CookError, match="reentrant"):
        session(model).before_step(0)


def test_the_least_that_is_named_can_be_had():
    with pytest.raises(CookError, match="the least is") as told:
        session(tiny.model(), budget={"parameters": 0.1}, gates=ALL[1:])
    least = float(told.value.hint.split()[2])
    bounded = session(tiny.model(), budget={"parameters": least}, gates=ALL[1:])
    bounded.before_step(4)
    bounded.finish()
    assert set(bounded.facts["prune.structured"]["left"].values()) == {1}


@pytest.mark.parametrize("how", ["structured", "hidden"])
def test_two_processes_agree(tmp_path, how):
    two("tests.prune.processes", str(tmp_path), how)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
