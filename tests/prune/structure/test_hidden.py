"""Gates of the residual stream: their gradients, what they cost, what they leave, and beside other passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from cook.data.calibration import given
from cook.errors import CookError
from cook.model.arch import units
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.families import STREAMS
from cook.model.arch.width import stream
from cook.model.edits import removal
from cook.model.edits.depth import droppable
from cook.model.probe.measure import macs, tally
from cook.prune.structure import cost
from cook.prune.structure.binarise import binarise, least
from cook.prune.structure.shares import Expected, Narrow, Shares
from cook.session import Session
from tests.helpers import bound, families, tiny
from tests.helpers.traces import hooks
from tests.model.arch.test_width import headed, stirred
from tests.prune.structure.test_structured import UNDROPPED, finished, spread

EXAMPLES = given([tiny.batch(size=8, seed=5)])
GATES = ["heads", "neurons", "hidden"]
ALL = ["layers", *GATES]


def session(model: Any, *others: Any, **options: Any) -> Session:
    """One of four steps, whose gates learn in the first two at the rate they are given."""
    found = {"budget": {"parameters": 0.8}, "gates": GATES, "end": 2, "speed": 1, **options}
    return bound.session(model, {"prune.structured": found}, *others, steps=4, calibration=EXAMPLES)


@pytest.mark.parametrize("family", sorted(STREAMS))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("gates", [GATES, ALL, ["hidden"]], ids=["units", "all", "alone"])
def test_what_is_held_equals_what_is_taken_out(family, attention, gates):
    model = stirred(families.made(family, attention))
    batch, count = families.batch(family), sum(each.numel() for each in model.parameters())
    if "layers" in gates:
        assert droppable(Anatomy(model))
    bounded = session(model, budget={"parameters": 0.6}, gates=gates)
    (structured,) = bounded.passes
    bounded.before_step(0)
    spread(structured, seed=1)
    with torch.no_grad():
        structured.gates.moved[-16:] -= 5  # the first to go
    bounded.before_step(2)
    assert int(structured.wide.sum()) == 8
    held, before, after = finished(bounded, batch)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert hooks(model) == {}
    left, facts = tally(model), bounded.facts["prune.structured"]
    assert (held.parameters, held.bytes) == (left.parameters, left.bytes)
    assert facts["reached"] == pytest.approx(left.parameters / count)
    assert (facts["hidden"], facts["of_hidden"]) == (8, 16)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel", "OPTForCausalLM"])
def test_a_head_that_is_tied_to_the_embeddings_stays_so(name):
    model = stirred(headed(name))
    batch = {k: v for k, v in families.batch(model.config.model_type).items() if k != "labels"}
    count = sum(each.numel() for each in model.parameters())
    bounded = session(model, budget={"parameters": 0.55})
    (structured,) = bounded.passes
    bounded.before_step(0)
    spread(structured, seed=1)
    bounded.before_step(2)
    held, before, after = finished(bounded, batch)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    left, facts = tally(model), bounded.facts["prune.structured"]
    assert (held.parameters, facts["hidden"]) == (left.parameters, 8)
    assert facts["reached"] == pytest.approx(left.parameters / count)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit"])
def test_the_task_reaches_the_gates_as_finite_differences_say(family):
    model = stirred(families.made(family, dtype=torch.float64, **UNDROPPED.get(family, {})))
    bounded = session(model, gates=ALL)
    (structured,) = bounded.passes
    model.train()
    spread(structured, seed=3, size=1.0)
    moved = structured.gates.moved

    def task() -> torch.Tensor:
        bounded.before_step(0)
        return bounded.module(families.batch(family))["task"]

    (slopes,) = torch.autograd.grad(task(), moved)
    assert int((slopes[-16:] != 0).sum()) > 4
    step = 1e-6
    for index in range(len(moved) - 16, len(moved)):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                moved[index] += sign * step
                losses.append(float(task()))
                moved[index] -= sign * step
        found = (losses[0] - losses[1]) / (2 * step)
        assert float(slopes[index]) == pytest.approx(found, rel=1e-4, abs=1e-8)


def test_layers_that_are_computed_again_meet_the_same_dimensions():
    model = families.made("bert", **UNDROPPED["bert"]).train()
    bounded = session(model, gates=ALL)
    spread(bounded.passes[0])
    found = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        bounded.module.zero_grad()
        bounded.before_step(0)
        sum(bounded.module(families.batch("bert")).values()).backward()
        found.append([each.grad.clone() for each in bounded.module.parameters() if each.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


MODELS = {
    **{family: lambda family=family: families.made(family) for family in STREAMS},
    **{
        name: lambda name=name: headed(name)
        for name in ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "ElectraForMaskedLM")
    },
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("goal", ["parameters", "macs"])
@pytest.mark.parametrize("gated", [True, False], ids=["layers", "units"])
def test_what_a_narrower_model_costs(name, goal, gated):
    model = MODELS[name]()
    batch = {key: v for key, v in families.batch(model.config.model_type).items() if key != "labels"}
    anatomy = Anatomy(model)
    found, hidden = units.units(anatomy), stream(anatomy)
    if goal == "macs":
        whole = cost.multiply_accumulates(model, found, batch, hidden)
    else:
        whole = cost.parameters(model, found, hidden)
    layers = anatomy.layers[:1] if gated else []  # the others cost what they cost
    homes = [layers.index(each.layers[0]) if each.layers[0] in layers else None for each in found]
    shares = Shares.made(whole, homes, layers)

    def measured(other: Any) -> float:
        return macs(other, batch) if goal == "macs" else sum(p.numel() for p in other.parameters())

    for left in (16, 8, 5):
        cut, counts = copy.deepcopy(model), []
        for each in found:
            counts.append(max(1, each.count // 2))
            removal.remove(cut, each, torch.arange(each.count) < counts[-1])
        removal.remove(cut, hidden, torch.arange(16) < left)
        share = shares.of([True] * len(layers), counts, left / 16)
        assert share == pytest.approx(measured(cut) / measured(model), rel=1e-9)


def test_the_expected_cost_against_all_widths_that_may_be():
    line = torch.arange(4, dtype=torch.float64) / 10
    shares = Shares([line, line], [0, None], [0.1], 0.3, Narrow([0.9, 0.5], [0.7], 0.2, 0.05))
    generator = torch.Generator().manual_seed(0)
    layers = torch.rand(1, generator=generator, dtype=torch.float64)
    wide = torch.rand(5, generator=generator, dtype=torch.float64).requires_grad_()
    counts = torch.tensor([1.7, 2.2], dtype=torch.float64)
    wanted = torch.zeros((), dtype=torch.float64)
    for states in torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 5):
        chance = (states * wide + (1 - states) * (1 - wide)).prod()
        for stays in (0, 1):
            part = layers[0] if stays else 1 - layers[0]
            width = float(states.mean())
            price = shares.of([bool(stays)], [0, 0], width)
            for entry, count in enumerate(counts.tolist()):
                if entry or stays:
                    price += count / 10 * shares.curve_at(entry, width)
            wanted = wanted + chance * part * price
    found = Expected(shares, layers)(layers, counts, wide)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=1e-12)
    slopes = [torch.autograd.grad(each, wide)[0] for each in (found, wanted)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-12)
    assert float(Expected(shares, layers)(layers, counts)) == pytest.approx(
        float(Expected(shares, layers)(layers, counts, torch.ones(5).double()))
    )


@pytest.mark.parametrize("width", [32, 30])
@pytest.mark.parametrize("asked", [0.25, 0.4, 0.6, 0.9])
def test_the_most_open_dimensions_stay_in_blocks_of_eight(width, asked):
    line = torch.arange(11, dtype=torch.float64) / 25
    shares = Shares([line, line], [None, None], [], 0.2, Narrow([0.9, 0.9], [], 0.1, 0.05))
    generator = torch.Generator().manual_seed(1)
    gates = [torch.randn(10, generator=generator) for _ in range(2)]
    hidden = torch.randn(width, generator=generator)
    _, keep, stays = binarise(shares, [], gates, asked, stream=hidden)
    counts, left = [int(each.sum()) for each in keep], int(stays.sum())
    reached = shares.of([], counts, left / width)
    assert reached <= asked + 1e-8
    step = 8 if width % 8 == 0 else 1
    assert left % step == 0
    assert left >= step
    if left < width:
        assert float(hidden[stays].min()) >= float(hidden[~stays].max())
        assert shares.of([], counts, (left + step) / width) > asked
    for number, own in enumerate(keep):
        if not own.all():
            more = [count + (number == entry) for entry, count in enumerate(counts)]
            assert shares.of([], more, left / width) > asked
    nearest = least(shares, [True, True], width=width)
    assert nearest == pytest.approx(shares.of([], [1, 1], step / width))
    with pytest.raises(ValueError, match="at least"):
        binarise(shares, [], gates, nearest - 0.01, stream=hidden)


@pytest.mark.parametrize(
    ("budget", "gates"), [({"macs": 0.3}, ALL), ({"parameters": 0.5}, GATES), ({"macs": 0.5}, ["hidden"])]
)
def test_the_goal_is_reached(budget, gates):
    model = tiny.model(layers=3, width=64)
    options = {"budget": budget, "gates": gates}
    bounded = bound.session(model, {"prune.structured": options}, steps=300, calibration=EXAMPLES)
    example = {name: each[:1] for name, each in tiny.batch(size=8, seed=5).items() if name != "labels"}
    before = {"macs": macs(model, example), "parameters": tally(model).parameters}
    bound.train(bounded, rate=2e-4)
    held = bound.logits(model)
    bounded.finish()
    torch.testing.assert_close(bound.logits(model), held, rtol=1e-5, atol=1e-5)
    after = {"macs": macs(model, example), "parameters": tally(model).parameters}
    facts = bounded.facts["prune.structured"]
    ((goal, asked),) = budget.items()
    assert facts["expected"] == pytest.approx(asked, abs=0.03)
    assert after[goal] / before[goal] == pytest.approx(facts["reached"], abs=1e-6)
    assert asked - (0.13 if gates == ["hidden"] else 0.03) < facts["reached"] <= asked + 1e-8
    assert facts["hidden"] % 8 == 0
    assert facts["hidden"] < 64


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(
    "other",
    [
        *({"prune.weights": {"sparsity": 0.5, "method": m}} for m in ("magnitude", "movement")),
        *({"prune.weights": {"sparsity": 0.5, "method": m, "start": 3}} for m in ("wanda", "sparsegpt")),
        {"quant.qat": {"weights": "int8"}},
        {"distill.hidden": {"map": {"layers[0].output": "layers[0].output"}}},
        {"prune.layers": {"keep": [1]}},
        "distill.logits",
    ],
    ids=["magnitude", "movement", "wanda", "sparsegpt", "qat", "hidden", "layers", "logits"],
)
def test_beside_other_passes(family, other):
    model = tiny.model(family)
    options = {"budget": {"parameters": 0.6}, "gates": GATES, "end": 2}
    examples = given([tiny.batch(family, size=16, seed=5)])
    first, second = ({"prune.structured": options}, other)
    if "prune.layers" in other:
        first, second = second, first
    bounded = bound.session(model, first, second, steps=5, calibration=examples, teacher="self")
    bound.train(bounded, family)
    before = bound.logits(model, family)
    bounded.finish()
    torch.testing.assert_close(bound.logits(model, family), before, rtol=1e-5, atol=1e-5)
    facts = bounded.facts.get("prune.weights", {"zeros": 1, "of": 2})
    assert facts["zeros"] == pytest.approx(facts["of"] / 2, abs=1)
    assert bounded.masks.state_dict()["structural"] == []


def test_what_cannot_be_is_refused():
    with pytest.raises(CookError, match="`hidden` cannot aim at it") as told:
        bound.passes({"prune.structured": {"budget": {"latency": 0.5}, "gates": ["hidden"]}})
    assert "macs" in told.value.hint
    with pytest.raises(CookError, match="all that touches the residual stream of a 't5' model") as told:
        session(families.made("t5"))
    assert told.value.hint.endswith("or leave `hidden` out")
    assert "passes[0]" in told.value.where
