"""Magnitude pruning: exact counts against a sort, the schedule's steps, and every kind of matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.prune.weights.schedule import sparsity_at
from cook.prune.weights.threshold import threshold_masks
from cook.session import Session
from tests.helpers import bound, tiny
from tests.helpers.tiny import FAMILIES


def slow_keep(values: list[float], sparsity: float) -> list[bool]:
    """What is kept of one list: all but the first `round(sparsity * n)` of a stable sort by magnitude."""
    order = sorted(range(len(values)), key=lambda index: (abs(values[index]), index))
    dropped = set(order[: round(sparsity * len(values))])
    return [index not in dropped for index in range(len(values))]


SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(sizes=SIZES, sparsity=st.floats(0, 1), seed=st.integers(0, 2**31), ties=st.booleans())
def test_masks_against_a_sort(sizes, sparsity, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(size, generator=generator) for size in sizes]
    if ties:
        weights = [weight.round() for weight in weights]
    together = [value for weight in weights for value in weight.flatten().tolist()]
    scores = [weight.abs() for weight in weights]
    globally = threshold_masks(scores, sparsity)
    found = [value for mask in globally for value in mask.flatten().tolist()]
    assert found == slow_keep(together, sparsity)
    for mask, weight in zip(threshold_masks(scores, sparsity, "layer"), weights, strict=True):
        assert mask.shape == weight.shape
        assert mask.flatten().tolist() == slow_keep(weight.flatten().tolist(), sparsity)


def test_no_other_scope():
    with pytest.raises(ValueError, match="no scope 'row'"):
        threshold_masks([torch.randn(2, 2)], 0.5, "row")


def zeros(session: Session) -> list[int]:
    return [int((session.model.get_parameter(name) == 0).sum()) for name in session.passes[0].parameters]


def count(session: Session) -> int:
    return sum(session.model.get_parameter(name).numel() for name in session.passes[0].parameters)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_shot_is_exact_on_every_family(family):
    model = tiny.model(family)
    dense = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    session = bound.session(model, {"prune.weights": {"sparsity": 0.37}}, steps=0)
    names = session.passes[0].parameters
    assert sum(zeros(session)) == round(0.37 * count(session))
    largest = max(float(dense[name][model.get_parameter(name) == 0].abs().max()) for name in names)
    for name, parameter in model.named_parameters():
        if name in names:
            kept = parameter != 0
            assert torch.equal(parameter[kept], dense[name][kept])
            assert float(parameter[kept].detach().abs().min()) >= largest
        else:
            assert torch.equal(parameter, dense[name])
    session.finish()
    facts = session.facts["prune.weights"]
    assert facts["zeros"] == round(0.37 * facts["of"])
    assert facts["asked"] == 0.37


def test_gpt2_convolutions_and_embeddings():
    model = tiny.model("gpt2")
    options = {"sparsity": 0.5, "include": ["Conv1D", "embeddings"], "scope": "layer"}
    session = bound.session(model, {"prune.weights": options}, steps=0)
    names = session.passes[0].parameters
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= set(names)
    assert "transformer.h.1.mlp.c_proj.weight" in names
    assert zeros(session) == [round(0.5 * model.get_parameter(name).numel()) for name in names]


def test_a_tied_matrix_is_pruned_once():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=23, n_embd=16, n_layer=1, n_head=4, n_positions=32))
    options = {"sparsity": 0.5, "include": ["head", "embeddings"]}
    session = bound.session(model, {"prune.weights": options}, steps=0)
    assert session.passes[0].parameters == ["transformer.wte.weight", "transformer.wpe.weight"]
    assert sum(zeros(session)) == round(0.5 * (23 + 32) * 16)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_plan_counts_what_will_be_zero(scope):
    # 0.037 of 256 and of 512 both round: one threshold a layer does not give the global number.
    options = {"sparsity": 0.037, "scope": scope, "include": ["layers"]}
    (planned,) = bound.passes({"prune.weights": options})
    with torch.device("meta"):
        effect = planned.plan(Anatomy(tiny.model()))
    session = bound.session(tiny.model(), {"prune.weights": options}, steps=0)
    assert effect.parameters == session.passes[0].parameters
    assert effect.zeros == sum(zeros(session))
    assert "3.7%" in effect.note


@pytest.mark.parametrize("schedule", ["constant", "linear", "cubic"])
@pytest.mark.parametrize("every", [1, 3])
def test_the_threshold_moves_in_the_window_only(schedule, every):
    model = tiny.model()
    options = {"sparsity": 0.6, "schedule": schedule, "every": every, "start": 4, "end": 14}
    session = bound.session(model, {"prune.weights": options}, steps=18)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    session.bind(optimizer)
    start, whole = sum(zeros(session)), count(session)
    for step in range(18):
        session.before_step(step)
        due = 0.0
        if step >= 14:
            due = 0.6
        elif step >= 4:
            last = step - (step - 4) % every
            due = sparsity_at((last - 4) / 10, 0.6, schedule)
        assert sum(zeros(session)) == max(start, round(due * whole)), step
        assert session.passes[0].status() == f"{due:.0%} zero"
        sum(session.module(tiny.batch(seed=step)).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
        after = round(0.6 * whole) if step >= 13 else round(due * whole)
        assert sum(zeros(session)) == max(start, after), step
    session.finish()
    assert session.facts["prune.weights"]["zeros"] == round(0.6 * whole)


def test_the_threshold_moves_every_hundredth_of_the_window_unless_told():
    for steps, every in ((1000, 7), (50, 1)):
        session = bound.session(tiny.model(), {"prune.weights": {"sparsity": 0.5}}, steps=steps)
        assert session.passes[0].every == every
    session = bound.session(tiny.model(), {"prune.weights": {"sparsity": 0.5, "every": "10%"}}, steps=50)
    assert session.passes[0].every == 5


@pytest.mark.parametrize("end", [5, 10])
def test_it_completes_when_the_last_step_is_skipped(end):
    model = tiny.model()
    session = bound.session(model, {"prune.weights": {"sparsity": 0.6, "end": end}})
    for step in range(10):
        session.before_step(step)
        if step != end - 1:  # the scaler skipped this one
            session.after_step()
    if end == 10:
        assert sum(zeros(session)) < round(0.6 * count(session))
    session.finish()
    assert sum(zeros(session)) == round(0.6 * count(session))
    assert session.facts["prune.weights"]["zeros"] == round(0.6 * count(session))


@pytest.mark.parametrize("at", [0, 6, 10])
def test_an_empty_window_is_one_cut(at):
    session = bound.session(tiny.model(), {"prune.weights": {"sparsity": 0.6, "start": at, "end": at}})
    for step in range(10):
        session.before_step(step)
        if step < at:
            assert sum(zeros(session)) == 0
        session.after_step()
        if step >= at:
            assert sum(zeros(session)) == round(0.6 * count(session))
    session.finish()
    assert sum(zeros(session)) == round(0.6 * count(session))


def test_what_fell_stays_under_momentum_and_two_passes_agree():
    model = tiny.model()
    items = [
        {"prune.weights": {"sparsity": 0.5, "include": ["attention"], "schedule": "constant"}},
        {"prune.weights": {"sparsity": 0.7, "include": ["layers"], "start": "30%", "end": "80%"}},
    ]
    session = bound.session(model, *items, steps=20)
    assert [each.id for each in session.passes] == ["prune.weights", "prune.weights#2"]
    bound.train(session, rate=0.05)
    first, second = session.passes
    masks = {name: model.get_parameter(name) == 0 for name in second.parameters}
    session.finish()
    for name, was in masks.items():
        assert torch.equal(model.get_parameter(name) == 0, was)
    assert session.facts["prune.weights#2"]["sparsity"] >= 0.7 - 1e-3
    assert session.facts["prune.weights"]["sparsity"] >= 0.5 - 1e-3
    assert set(first.parameters) < set(second.parameters)


def test_finishing_changes_no_output_and_leaves_plain_layers():
    model = tiny.model()
    classes = [type(module) for module in model.modules()]
    session = bound.session(model, {"prune.weights": {"sparsity": 0.8}})
    bound.train(session)
    masked = bound.logits(model)
    session.finish()
    assert torch.equal(bound.logits(model), masked)
    assert [type(module) for module in model.modules()] == classes
    assert session.masks.state_dict() == {"masks": {}, "structural": []}


def test_nothing_to_prune_is_an_error():
    with pytest.raises(CookError, match="matches no linear layer or embedding"):
        bound.session(tiny.model(), {"prune.weights": {"sparsity": 0.5, "include": ["LayerNorm"]}})
