"""N:M patterns: every group against a sort, on every kind of matrix, held while the weights learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.nn.linear import matrix
from cook.prune.weights.pattern import pattern_mask
from tests.helpers import bound, tiny
from tests.helpers.tiny import FAMILIES
from tests.prune.weights.test_weights import count, zeros


def slow_pattern(rows: list[list[float]], keep: int, group: int) -> list[list[bool]]:
    """Each group of each row by itself: all but the first `group - keep` of a stable sort."""
    return [
        [kept for start in range(0, len(row), group) for kept in slow_group(row[start : start + group], keep)]
        for row in rows
    ]


def slow_group(values: list[float], keep: int) -> list[bool]:
    order = sorted(range(len(values)), key=lambda index: (abs(values[index]), index))
    return [index in order[len(values) - keep :] for index in range(len(values))]


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 4),
    groups=st.integers(1, 4),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda sizes: sizes[0] <= sizes[1]),
    seed=st.integers(0, 2**31),
    ties=st.booleans(),
)
def test_patterns_against_a_sort_of_each_group(rows, groups, sizes, seed, ties):
    weight = torch.randn(rows, groups * sizes[1], generator=torch.Generator().manual_seed(seed))
    weight = weight.round() if ties else weight
    keep = pattern_mask(weight.abs(), *sizes)
    assert keep.tolist() == slow_pattern(weight.tolist(), *sizes)
    assert (keep.view(rows, groups, sizes[1]).sum(-1) == sizes[0]).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_a_pattern_lies_along_the_input_on_every_family(family, pattern):
    n, m = map(int, pattern.split(":"))
    model = tiny.model(family)
    dense = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    session = bound.session(model, {"prune.weights": {"pattern": pattern}}, steps=0)
    names = session.passes[0].parameters
    assert names
    for name in names:
        layer = model.get_submodule(name.removesuffix(".weight"))
        before = dense[name].t() if family == "gpt2" else dense[name]
        keep = torch.tensor(slow_pattern(before.tolist(), n, m))
        assert torch.equal(matrix(layer).detach(), before * keep), name
    session.finish()
    facts = session.facts["prune.weights"]
    assert facts["zeros"] * m == facts["of"] * (m - n)
    assert (facts["pattern"], facts["asked"]) == (pattern, 1 - n / m)


def test_a_pattern_in_embeddings_lies_along_their_width():
    model = tiny.model("gpt2")
    dense = model.transformer.wte.weight.detach().clone()
    bound.session(model, {"prune.weights": {"pattern": "2:4", "include": ["embeddings"]}}, steps=0)
    keep = torch.tensor(slow_pattern(dense.tolist(), 2, 4))
    assert torch.equal(model.transformer.wte.weight.detach(), dense * keep)


def test_the_plan_counts_what_a_pattern_zeroes():
    items = {"prune.weights": {"pattern": "1:4", "include": ["layers", "*.position_embeddings"]}}
    (planned,) = bound.passes(items)
    with torch.device("meta"):
        effect = planned.plan(Anatomy(tiny.model()))
    session = bound.session(tiny.model(), items, steps=0)
    assert effect.zeros == sum(zeros(session)) == count(session) * 3 // 4
    assert "1:4" in effect.note


@pytest.mark.parametrize("skipped", [False, True])
def test_a_pattern_is_laid_at_the_start_and_held_while_the_weights_learn(skipped):
    model = tiny.model("gpt2")
    session = bound.session(model, {"prune.weights": {"pattern": "2:4", "start": 3, "end": 6}})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    session.bind(optimizer)
    (name, *_) = names = session.passes[0].parameters
    for step in range(10):
        session.before_step(step)
        sum(session.module(tiny.batch("gpt2", seed=step)).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if not (skipped and step == 3):
            session.after_step()
        if step < 3:
            assert sum(zeros(session)) == 0
        else:
            assert sum(zeros(session)) == count(session) // 2
        if step == 3:
            first = {name: model.get_parameter(name).detach().clone() for name in names}
    assert all(torch.equal(model.get_parameter(name) == 0, first[name] == 0) for name in names)
    assert not torch.equal(model.get_parameter(name), first[name])
    session.finish()
    assert session.facts["prune.weights"]["sparsity"] == 0.5


def test_a_pattern_meets_the_masks_of_other_passes_by_intersection():
    alone = [
        bound.session(tiny.model(), {"prune.weights": options}, steps=0)
        for options in ({"pattern": "2:4"}, {"sparsity": 0.3})
    ]
    items = [{"prune.weights": {"pattern": "2:4"}}, {"prune.weights": {"sparsity": 0.3, "scope": "layer"}}]
    both = bound.session(tiny.model(), *items, steps=10)
    bound.train(both)
    pattern, smallest = both.passes
    joint = sum(zeros(both))
    assert count(both) // 2 <= joint <= sum(map(sum, map(zeros, alone)))
    for name in pattern.parameters:
        kept = both.masks.get(pattern.id, name) & both.masks.get(smallest.id, name)
        assert torch.equal(both.model.get_parameter(name) != 0, kept)
    weight = both.model.get_parameter(pattern.parameters[0])
    assert (weight.view(weight.shape[0], -1, 4) != 0).sum(-1).max() <= 2


@pytest.mark.parametrize(
    ("options", "place", "words"),
    [
        ({}, "sparsity", "write sparsity: 0.5, or pattern: 2:4"),
        ({"pattern": "4:4"}, "pattern", "4:4 keeps every weight"),
        ({"pattern": "4:2"}, "pattern", "expected N:M with N below M"),
        ({"pattern": "0:4"}, "pattern", "0:4"),
        ({"pattern": "half"}, "pattern", "half"),
        ({"pattern": "2:4", "sparsity": 0.6}, "sparsity", "the pattern 2:4 is a sparsity of 0.5"),
        ({"pattern": "2:4", "scope": "layer"}, "scope", "means nothing with the pattern 2:4"),
        ({"pattern": "2:4", "schedule": "linear"}, "schedule", "leave it out"),
        ({"pattern": "2:4", "every": 2}, "every", "leave it out"),
        ({"pattern": "2:4", "block": 4}, "block", "means nothing with the pattern 2:4"),
        ({"method": "wander"}, "method", "wanda"),
        ({"method": "wanda"}, "sparsity", "write sparsity: 0.5, or pattern: 2:4"),
        ({"method": "movement"}, "sparsity", "missing; expected a sparsity"),
        ({"method": "wanda", "sparsity": 0.5, "block": 4}, "block", "it is for magnitude, movement"),
        ({"method": "wanda", "sparsity": 0.5, "scope": "layer"}, "scope", "nothing with method wanda"),
        ({"method": "sparsegpt", "pattern": "2:4", "schedule": "linear"}, "schedule", "leave it out"),
        ({"method": "movement", "pattern": "2:4"}, "pattern", "it is for magnitude, wanda, sparsegpt"),
        ({"method": "movement", "sparsity": 0.5, "schedule": "constant"}, "schedule", "cubic or linear"),
        ({"method": "soft-movement", "sparsity": 0.5}, "sparsity", "nothing with method soft-movement"),
        ({"sparsity": 0.5, "rows": 64}, "rows", "it is for wanda, sparsegpt"),
        ({"sparsity": 0.5, "penalty": 1}, "penalty", "it is for soft-movement"),
        ({"sparsity": 0.5, "block": [4]}, "block", "found a list of 1"),
        ({"sparsity": 0.5, "block": [4, 0]}, "block[1]", "0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, place, words):
    with pytest.raises(CookError) as caught:
        bound.passes({"prune.weights": options})
    assert (caught.value.where or "").endswith(f"passes[0].{place}")
    assert words in str(caught.value)


def test_a_pattern_and_the_sparsity_that_it_is_may_stand_together():
    (made,) = bound.passes({"prune.weights": {"pattern": "1:4", "sparsity": 0.75}})
    assert made.options.sparsity == 0.75


def test_widths_that_are_no_multiple_are_refused_with_the_way_out():
    options = {"pattern": "2:4", "include": ["ffn", "embeddings"]}
    model = tiny.model(width=18 * 4)
    wide = {**options, "pattern": "2:16"}
    (planned,) = bound.passes({"prune.weights": wide})
    with pytest.raises(CookError) as caught, torch.device("meta"):
        planned.plan(Anatomy(model))
    assert "bert.embeddings.word_embeddings has 72 inputs, which is no multiple of 16 (and " in str(
        caught.value
    )
    assert "exclude: [bert.embeddings.word_embeddings, " in str(caught.value)
    assert (caught.value.where or "").endswith("passes[0].pattern")
    exclude = ["embeddings", "*.intermediate.dense"]
    session = bound.session(model, {"prune.weights": {**wide, "exclude": exclude}}, steps=0)
    assert sum(zeros(session)) * 16 == count(session) * 14
