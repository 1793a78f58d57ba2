"""Blocks: means against loops, and whole blocks in every kind of matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.nn.linear import matrix
from cook.prune.specs.options import block_sizes
from cook.prune.weights.block import block_means, over_blocks
from tests.helpers import bound, tiny
from tests.prune.weights.test_weights import count, zeros

SIDES = st.integers(1, 4)


@given(rows=SIDES, columns=SIDES, down=SIDES, across=SIDES, seed=st.integers(0, 2**31))
def test_means_against_loops(rows, columns, down, across, seed):
    scores = torch.randn(
        rows * down, columns * across, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    found = block_means(scores, rows, columns)
    assert found.shape == (down, across)
    for top in range(down):
        for left in range(across):
            cells = [
                float(scores[top * rows + row, left * columns + column])
                for row in range(rows)
                for column in range(columns)
            ]
            assert float(found[top, left]) == pytest.approx(sum(cells) / len(cells))
    keep = over_blocks(found > 0, rows, columns)
    assert keep.shape == scores.shape
    for row in range(rows * down):
        for column in range(columns * across):
            assert bool(keep[row, column]) == bool(found[row // rows, column // columns] > 0)


def test_a_number_is_a_square():
    assert block_sizes(4) == (4, 4)
    assert block_sizes([2, 8]) == (2, 8)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_whole_blocks_go_on_every_family(family, scope):
    model = tiny.model(family)
    options = {"prune.weights": {"sparsity": 0.4, "block": [8, 2], "scope": scope}}
    (planned,) = bound.passes(options)
    with torch.device("meta"):
        effect = planned.plan(Anatomy(tiny.model(family)))
    session = bound.session(model, options, steps=0)
    blocks = [size.numel() // 16 for size in (model.get_parameter(n) for n in session.passes[0].parameters)]
    together = [sum(blocks)] if scope == "global" else blocks
    assert sum(zeros(session)) == effect.zeros == 16 * sum(round(0.4 * each) for each in together)
    for name in session.passes[0].targets:
        weight = matrix(model.get_submodule(name))
        kept = block_means((weight != 0).double(), 8, 2)
        assert bool(((kept == 0) | (kept == 1)).all())


def test_the_smallest_mean_goes_first():
    model = tiny.model()
    layer = model.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight[4:8, 8:12] = 0.5
        layer.weight[0, 0] = 0.01  # small, in a block whose mean is not
    options = {"sparsity": 1 / 32, "block": 4, "include": ["bert.encoder.layer.0.intermediate.dense"]}
    session = bound.session(model, {"prune.weights": options}, steps=0)
    assert zeros(session) == [16]
    assert bool((layer.weight[4:8, 8:12] == 0).all())
    assert count(session) == 512


def test_blocks_that_do_not_fit_are_refused_with_the_way_out():
    for block, words in (([1, 3], "has 16 inputs, which is no multiple of 3"), ([5, 4], "outputs, which")):
        with pytest.raises(CookError) as caught:
            bound.session(tiny.model(), {"prune.weights": {"sparsity": 0.5, "block": block}}, steps=0)
        assert words in str(caught.value)
        assert "exclude: [" in str(caught.value)
        assert (caught.value.where or "").endswith("passes[0].block")
