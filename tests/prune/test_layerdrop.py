"""Layers that are left out at random while a model trains: which ones, and what that is equal to."""

from __future__ import annotations

import copy
import itertools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cook
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.depth import compact, left_out, skips
from cook.pipeline.plan import plan_passes
from cook.prune.layerdrop import dropped
from cook.session import Session
from cook.train.recompute import recomputing
from tests.helpers import bound, families, tiny
from tests.helpers.processes import two
from tests.helpers.traces import differences, hooks
from tests.prune import dropping

DROPPABLE = [family for family in families.ALL if family not in ("albert", "t5")]
HALF = {"prune.layerdrop": {"rate": 0.5}}


def choices(session: Session, steps: int, forwards: int = 1) -> list[list[str]]:
    """What each forward of so many steps leaves out."""
    (each,) = (one for one in session.passes if one.name == "prune.layerdrop")
    found = []
    for step in range(steps):
        session.before_step(step)
        found += [list(each.skipped_layers(session)) for _ in range(forwards)]
    return found


def terms(session: Session, batch: dict[str, Tensor], seed: int = 7) -> Tensor:
    """The loss of one forward, after the same seed for dropout every time."""
    torch.manual_seed(seed)
    return torch.stack(list(session.module(batch).values())).sum()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: number.grad for name, number in model.named_parameters()}


def runs(model: nn.Module) -> dict[str, int]:
    """Counts how often the first matrix of each layer is computed with, from now on."""
    counts: dict[str, int] = {}
    for layer in Anatomy(model).layers:
        counts[layer] = 0
        inner = next(each for each in model.get_submodule(layer).modules() if hasattr(each, "weight"))

        def count(*_: Any, layer: str = layer) -> None:
            counts[layer] += 1

        inner.register_forward_hook(count)
    return counts


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.8])
def test_each_layer_is_left_out_as_often_as_asked(rate):
    layers, forwards = 12, 4000
    found = [dropped(layers, rate, 3, number, 0) for number in range(forwards)]
    spread = math.sqrt(rate * (1 - rate) / forwards)
    for layer in range(layers):
        share = sum(layer in each for each in found) / forwards
        assert abs(share - rate) < 4 * spread, layer
    # Each for itself: two neighbours go together as often as chance has it.
    both = sum({4, 5} <= set(each) for each in found) / forwards
    assert abs(both - rate**2) < 4 * math.sqrt(rate**2 * (1 - rate**2) / forwards)
    # And none knows of the forward before.
    again = sum(4 in one and 4 in other for one, other in itertools.pairwise(found)) / forwards
    assert abs(again - rate**2) < 5 * math.sqrt(rate**2 * (1 - rate**2) / forwards)


def test_a_choice_is_a_function_of_seed_step_and_forward():
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    keys = [(seed, step, forward) for seed in range(3) for step in range(5) for forward in range(4)]
    found = [dropped(24, 0.5, *key) for key in keys]
    assert found == [dropped(24, 0.5, *key) for key in keys]
    assert len({tuple(each) for each in found}) == len(found)
    # A fixed point: runs of today and of next year, on any machine, leave out the same.
    assert dropped(12, 0.5, 0, 0, 0) == [1, 4, 9, 10]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("family", DROPPABLE)
@pytest.mark.parametrize("number", [0, 1])
def test_it_is_the_model_without_the_layers(family, number):
    """The loss and every gradient are those of a model that lacks the layers, under the same dropout."""
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    layers = Anatomy(model).layers
    gone = [layers[number], *(layers[2 + number :: 2] if family == "bart" else [])]
    short: Any = copy.deepcopy(model)
    edits = skips(Anatomy(short), gone)
    Blueprint(edits=edits).apply(short)
    compact(short, Blueprint(edits=edits))
    keep = [at for at, layer in enumerate(layers) if layer not in gone]
    names = dict(zip([layers[at] for at in keep], Anatomy(short).layers, strict=True))

    session = bound.session(model, HALF)
    session.passes[0].skipped_layers = lambda _: gone  # type: ignore[method-assign]
    session.module.train()
    batch = families.batch(family)
    counts = runs(model)
    session.before_step(0)
    loss = terms(session, batch)
    loss.backward()
    assert [layer for layer, count in counts.items() if count] == list(names)
    torch.manual_seed(7)
    wanted = short.train()(**batch).loss
    wanted.backward()
    assert torch.equal(loss, wanted)
    expected, seen = gradients(short), set()
    for name, gradient in gradients(model).items():
        layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if layer in gone:
            assert gradient is not None, name
            assert not gradient.any(), name
            continue
        theirs = name if layer is None else f"{names[layer]}{name.removeprefix(layer)}"
        seen.add(theirs)
        other = expected[theirs]
        assert (gradient is None) == (other is None), name
        assert gradient is None or torch.equal(gradient, other), name
    assert seen == expected.keys()
    assert Anatomy(model).live == layers


def test_every_forward_draws_anew_and_a_step_can_be_replayed():
    session = bound.session(tiny.model(layers=6), HALF)
    session.module.train()
    layers = Anatomy(session.model).layers
    found = choices(session, 4, 3)
    assert found == choices(session, 4, 3)
    wanted = [
        [layers[number] for number in dropped(6, 0.5, 0, step, forward)]
        for step in range(4)
        for forward in range(3)
    ]
    assert found == wanted
    counts = runs(session.model)
    session.before_step(2)
    for forward in range(3):
        counts.update(dict.fromkeys(counts, 0))
        session.module(tiny.batch())
        assert [layer for layer, count in counts.items() if not count] == found[6 + forward]
    other = bound.session(tiny.model(layers=6), {"prune.layerdrop": {"rate": 0.5, "seed": 1}})
    assert choices(other, 4, 3) != found


def test_evaluation_and_steps_outside_of_the_window_are_whole():
    model = tiny.model(layers=4)
    session = bound.session(model, {"prune.layerdrop": {"rate": 0.9, "start": 2, "end": 4}}, steps=6)
    counts = runs(model)

    def whole() -> bool:
        before = dict(counts)
        session.module(tiny.batch())
        return all(counts[layer] == before[layer] + 1 for layer in counts)

    session.module.train()
    for step, expected in enumerate([True, True, False, False, True, True]):
        session.before_step(step)
        assert whole() is expected, step
        session.module.eval()
        assert whole()
        session.module.train()
        model(**tiny.batch())  # not a forward of the session: somebody looks at the model
        session.after_step()
    session.finish()
    assert session.facts["prune.layerdrop"]["forwards"] == 2
    assert hooks(model).keys() == {f"{name}._forward_hooks" for name in hooked(model)}


def hooked(model: nn.Module) -> list[str]:
    """The modules that `runs` has hooked."""
    return [name for name, module in model.named_modules() if module._forward_hooks]


def test_a_run_is_evaluated_whole_in_its_middle():
    model = tiny.model(layers=4)
    config = {
        "version": 1,
        "data": {"text": "sentence"},
        "train": {"steps": 6, "batch_size": 8, "accumulate": 2, "eval_every": 2, "learning_rate": 1e-2},
        "passes": [{"prune.layerdrop": {"rate": 0.5}}],
    }
    rows = [{"sentence": f"the film is {mood}", "label": label} for label, mood in enumerate(("bad", "good"))]
    data = {"train": rows * 12, "validation": rows * 4}
    result = cook.apply(model, config, data=data, tokenizer=tiny.tokenizer())
    facts = result.report.passes[0].facts
    wanted = [len(dropped(4, 0.5, 0, step, forward)) for step in range(6) for forward in range(2)]
    share = f"{100 * sum(wanted) / 48:.1f} %"
    assert facts.pop("note") == f"{share} of the runs through 4 layers left out in training"
    assert facts == {"rate": 0.5, "dropped": sum(wanted) / 48, "layers": 4, "forwards": 12}
    losses = [entry["metrics"]["loss"] for entry in result.report.train["history"] if "metrics" in entry]
    assert len(losses) == 3
    assert losses[-1] == result.report.model.after.metrics["loss"]
    assert not hasattr(result.model.config, "quantization_config")
    assert len(result.model.bert.encoder.layer) == result.model.config.num_hidden_layers == 4


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_that_are_computed_again_make_the_same_choice(family):
    found = []
    for wanted in (False, True):
        model = tiny.model(family, layers=4)
        session = bound.session(model, HALF)
        session.module.train()
        with recomputing(model, wanted):
            for step in range(3):
                session.before_step(step)
                terms(session, tiny.batch(family), seed=step).backward()
        found.append(gradients(model))
    assert list(differences(*found)) == []


def test_under_autocast():
    model = tiny.model("llama", layers=4)
    session = bound.session(model, HALF)
    session.module.train()
    for step in range(4):
        session.before_step(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = terms(session, tiny.batch("llama"))
        loss.backward()
        assert torch.isfinite(loss)
    found = [gradient for gradient in gradients(model).values() if gradient is not None]
    assert all(torch.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize("family", ["bert", "bart", "deberta-v2", "llama"])
def test_all_layers_can_go_and_every_parameter_still_takes_part(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    layers = Anatomy(model).layers
    session = bound.session(model, HALF)
    session.passes[0].skipped_layers = lambda _: layers  # type: ignore[method-assign]
    session.module.train()
    session.before_step(0)
    loss = terms(session, families.batch(family))
    loss.backward()
    assert all(gradient is not None for gradient in gradients(model).values())
    moved = [name for name, gradient in gradients(model).items() if gradient.any()]
    assert moved
    assert not any(name.startswith(f"{layer}.") for name in moved for layer in layers)


def test_a_failing_forward_leaves_no_layer_out():
    model = tiny.model(layers=3)
    layers = Anatomy(model).layers
    before = [model.get_submodule(name) for name in layers]
    with pytest.raises(AttributeError, match="Skipped"), left_out(Anatomy(model), layers[:2]):
        model.get_submodule(layers[0]).attention  # noqa: B018
    assert all(model.get_submodule(name) is each for name, each in zip(layers, before, strict=True))


@pytest.mark.parametrize(
    "lesson",
    [
        {"distill.hidden": {"map": {"layers[2].input": "layers[1].output"}}},
        {"distill.patient": {"tokens": "all", "layers": [0, 1, 2, 3]}},
        {"distill.tinybert": {"parts": ["embeddings", "hidden"]}},
    ],
    ids=["hidden", "patient", "tinybert"],
)
def test_a_layer_that_is_left_out_gives_what_it_gets(lesson):
    model, teacher = tiny.model(layers=4), tiny.model(layers=4, seed=1)
    states = copy.deepcopy(teacher.state_dict())
    names = ("embeddings.output", *(f"layers[{n}].output" for n in range(4)))
    every = {"distill.hidden": {"map": {name: name for name in names}}}
    session = bound.session(model, lesson, HALF, every, teacher=teacher)
    counts = runs(teacher)
    session.module.train()
    for step in range(5):
        gone = {f"bert.encoder.layer.{n}" for n in dropped(4, 0.5, 0, step, 0)}
        session.before_step(step)
        terms(session, tiny.batch(seed=step)).backward()
        before = session.tensor("embeddings.output")
        for number, name in enumerate(Anatomy(model).layers):
            given = session.tensor(f"layers[{number}].output")
            assert torch.equal(given, before) == (name in gone), (step, number)
            before = given
    assert set(counts.values()) == {5}, "the teacher is whole"
    assert list(differences(states, teacher.state_dict())) == []


@pytest.mark.parametrize(
    ("lesson", "options", "module"),
    [
        ({"distill.minilm": {}}, {}, "bert.encoder.layer.1.attention.self"),
        ({"distill.tinybert": {}}, {"keep": [1]}, "bert.encoder.layer.0.attention.self"),
        (
            {"distill.hidden": {"map": {"layers[0].ffn.output": "layers[0].ffn.output"}}},
            {},
            "bert.encoder.layer.0.output",
        ),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_inside_of_a_layer_cannot_be_learned(lesson, options, module, first):
    items = [lesson, {"prune.layerdrop": options}]
    items = items if first else items[::-1]
    with torch.device("meta"):
        model, teacher = tiny.model(), tiny.model()
    with pytest.raises(CookError, match=f"{module} gives nothing in forwards that leave") as told:
        plan_passes(model, bound.passes(*items), [teacher])
    assert "passes[" in told.value.where
    assert "keep" in told.value.hint
    model = tiny.model()
    with pytest.raises(CookError, match=f"{module} gives nothing in forwards that leave") as told:
        bound.session(model, *items, teacher="self")
    assert "passes[" in told.value.where
    assert hooks(model) == {}


def test_what_is_inside_of_a_layer_that_stays_can():
    model = tiny.model(layers=3)
    items = {"distill.minilm": {}}, {"prune.layerdrop": {"rate": 0.9, "keep": [-1]}}
    with torch.device("meta"):
        plan_passes(tiny.model(layers=3), bound.passes(*items), [tiny.model(layers=3)])
    session = bound.session(model, *items, teacher="self", steps=4)
    assert [len(each) for each in session.passes[1:] for each in [each.layers]] == [2]
    bound.train(session)
    session.finish()
    assert session.facts["prune.layerdrop"]["layers"] == 2


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"keep": [2]}, "there is no layer 2: the model has 2, 0 to 1", None),
        ({"keep": [0, -1]}, "no layer could be left out", "fewer"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(options, message, hint):
    with torch.device("meta"):
        model = tiny.model()
    with pytest.raises(CookError, match=message) as told:
        plan_passes(model, bound.passes({"prune.layerdrop": options}))
    assert told.value.where.endswith("keep")
    assert hint is None or hint in told.value.hint


@pytest.mark.parametrize("family", ["albert", "t5"])
def test_families_whose_layers_hang_together(family):
    model = families.made(family, device="meta")
    with pytest.raises(CookError, match=r"position biases too|runs several times") as told:
        plan_passes(model, bound.passes({"prune.layerdrop": {}}))
    assert "passes[0]" in told.value.where


def test_layers_that_are_gone_are_not_drawn():
    model = tiny.model(layers=4)
    session = bound.session(model, HALF, {"prune.layers": {"keep": [0, 2, 3]}})
    assert session.passes[0].layers == [f"bert.encoder.layer.{number}" for number in (0, 2, 3)]
    bound.train(session)
    before = bound.logits(model)
    session.finish()
    assert torch.equal(bound.logits(model), before)
    assert model.config.num_hidden_layers == 3


def test_two_processes_and_one(tmp_path):
    two("tests.prune.dropping", str(tmp_path))
    for family in dropping.FAMILIES:
        first, second = (torch.load(tmp_path / f"{family}-{rank}.pt") for rank in range(2))
        alone = dropping.learn(family)
        assert first.keys() == second.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.equal(first[name], second[name]), name
            assert (first[name] - value).abs().max() < 1e-5, name
        whole = families.made(family, families.ATTENTION.get(family, "sdpa")).state_dict()
        moved = [name for name in alone if not torch.equal(alone[name], whole[name.removeprefix("model.")])]
        assert len(moved) > len(alone) // 2
    # In some steps all went, in some none of the decoder's, and everything between.
    assert {len(dropped(4, dropping.RATE, 0, step, 0)) for step in range(dropping.STEPS)} >= {1, 2, 3, 4}
