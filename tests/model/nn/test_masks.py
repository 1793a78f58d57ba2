"""Masks: exact counts, intersection, and zeros that stay zero while an optimizer with momentum works."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cook.model.nn.masks import Masks, fold, lowest, soften
from cook.model.nn.transformed import TransformedLinear
from tests.helpers import tiny

NAME = "bert.encoder.layer.0.attention.self.query.weight"


def slow_lowest(scores: list[float], count: int) -> list[bool]:
    """The `count` first positions after a stable sort."""
    order = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    return [index in order[:count] for index in range(len(scores))]


@settings(max_examples=150, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-1.5, 0.0, -0.0, 0.25, 0.5, 3.0]), min_size=1, max_size=24),
    share=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_lowest_is_exact_and_takes_ties_in_order(scores, share, dtype):
    count = round(share * len(scores))
    found = lowest(torch.tensor(scores, dtype=dtype), count)
    assert found.dtype == torch.bool
    assert found.tolist() == slow_lowest(scores, count)


def test_lowest_keeps_the_shape_and_refuses_other_counts():
    assert lowest(torch.randn(2, 3, 4), 5).shape == (2, 3, 4)
    assert lowest(torch.empty(0), 0).shape == (0,)
    for count in (-1, 7):
        with pytest.raises(ValueError, match=f"cannot choose {count} of 6"):
            lowest(torch.randn(2, 3), count)


def holds(weight: torch.Tensor, keep: torch.Tensor) -> bool:
    return bool(torch.equal(weight != 0, keep))


def test_masks_meet_by_intersection_and_part_again():
    model = tiny.model()
    weight = model.get_parameter(NAME)
    torch.manual_seed(1)
    first, second = torch.rand(weight.shape) > 0.3, torch.rand(weight.shape) > 0.4
    masks = Masks(model)
    masks.set("a", NAME, first)
    masks.set("b", NAME, second)
    assert holds(weight, first & second)
    fresh(weight)
    masks.apply()
    assert holds(weight, first & second)
    masks.drop("a")
    fresh(weight)
    masks.apply()
    assert holds(weight, second)
    assert masks.get("a", NAME) is None
    assert torch.equal(masks.get("b", NAME), second)
    masks.set("b", NAME, first)
    fresh(weight)
    masks.apply()
    assert holds(weight, first)
    masks.drop("b")
    fresh(weight)
    masks.apply()
    assert bool((weight == 1).all())


@torch.no_grad()
def fresh(weight: torch.Tensor) -> None:
    weight.fill_(1)


def test_a_mask_of_another_shape_is_refused():
    masks = Masks(tiny.model())
    with pytest.raises(ValueError, match=r"mask of \(2, 2\) over a weight of \(16, 16\)"):
        masks.set("a", NAME, torch.ones(2, 2, dtype=torch.bool))


class Tied(nn.Module):
    """An embedding and a head that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("names", [("embedding.weight", "head.weight"), ("head.weight", "embedding.weight")])
def test_a_tied_parameter_is_one_whatever_name_it_goes_by(names):
    model = Tied()
    first, second = torch.rand(5, 3) > 0.3, torch.rand(5, 3) > 0.3
    masks = Masks(model)
    masks.set("a", names[0], first)
    masks.set("b", names[1], second)
    assert list(masks.state_dict()["masks"]) == ["embedding.weight"]
    fresh(model.head.weight)
    masks.apply()
    assert holds(model.head.weight, first & second)
    masks.drop("a")
    fresh(model.head.weight)
    masks.apply()
    assert holds(model.head.weight, second)
    assert torch.equal(masks.get("b", names[0]), second)
    masks.drop("b")
    assert masks.state_dict() == {"masks": {}, "structural": []}
    fresh(model.head.weight)
    masks.apply()
    assert bool((model.head.weight == 1).all())


def test_masks_over_a_module_that_leaves_are_forgotten():
    model = tiny.model()
    masks = Masks(model)
    other = NAME.replace("layer.0", "layer.1")
    for owner in ("one", "two"):
        for name in (NAME, other):
            masks.set(owner, name, torch.rand(16, 16) > 0.5, leaves=True)
    masks.apply()
    masks.forget("bert.encoder.layer.0")
    assert list(masks.state_dict()["masks"]) == [other]
    del model.bert.encoder.layer[0].attention.self.query.weight
    masks.drop("one")
    masks.apply()
    assert masks.leaving(model.get_parameter(other)) is not None


def test_state_survives_a_round_trip():
    model, other = tiny.model(), tiny.model()
    keep, more = torch.rand(16, 16) > 0.5, torch.rand(16, 16) > 0.2
    masks, restored = Masks(model), Masks(other)
    masks.set("a", NAME, keep)
    masks.set("b", NAME, more)
    restored.set("stale", NAME, more)
    restored.load_state_dict(masks.state_dict())
    fresh(other.get_parameter(NAME))
    restored.apply()
    assert holds(other.get_parameter(NAME), keep & more)
    assert restored.get("stale", NAME) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hard_masks_hold_under_adamw_with_momentum(dtype):
    model = tiny.model().to(dtype)
    weight = model.get_parameter(NAME)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    masks = Masks(model)
    keep = torch.rand(weight.shape) > 0.5
    for step in range(6):
        if step == 2:  # after the moments have gathered something for every weight
            masks.set("a", NAME, keep)
        model(**tiny.batch(seed=step)).loss.backward()
        optimizer.step()
        masks.apply()
        optimizer.zero_grad()
        if step >= 2:
            assert holds(weight, keep)
    # Without the mask the same optimizer brings them back: what the test would miss otherwise.
    model(**tiny.batch()).loss.backward()
    optimizer.step()
    assert (weight[~keep] != 0).any()


@pytest.mark.parametrize(
    ("family", "layer"), [("bert", NAME.removesuffix(".weight")), ("gpt2", "transformer.h.0.mlp.c_fc")]
)
def test_folding_a_soft_mask_equals_the_masked_layer(family, layer):
    model = tiny.model(family).eval()
    plain = type(model.get_submodule(layer))
    names = list(model.state_dict())
    dense = model.get_parameter(f"{layer}.weight").detach().clone()
    mask = soften(model, layer, "prune.soft")
    assert torch.equal(model.get_parameter(f"{layer}.weight"), dense)
    mask.keep.copy_(torch.rand(mask.keep.shape) > 0.5)
    masked = model(**tiny.batch(family)).logits
    assert torch.equal(model.get_parameter(f"{layer}.weight"), dense), "the dense weight is kept"
    fold(model, layer, "prune.soft")
    assert type(model.get_submodule(layer)) is plain
    assert list(model.state_dict()) == names
    keep = mask.keep.t() if family == "gpt2" else mask.keep
    assert torch.equal(model.get_parameter(f"{layer}.weight"), dense * keep)
    torch.testing.assert_close(model(**tiny.batch(family)).logits, masked, rtol=1e-5, atol=1e-6)


def test_two_soft_masks_intersect_and_the_layer_stays_until_both_are_folded():
    model = tiny.model()
    layer = NAME.removesuffix(".weight")
    dense = model.get_parameter(NAME).detach().clone()
    a, b = soften(model, layer, "a"), soften(model, layer, "b")
    a.keep.copy_(torch.rand(16, 16) > 0.3)
    b.keep.copy_(torch.rand(16, 16) > 0.3)
    assert torch.equal(model.get_submodule(layer).effective(), dense * a.keep * b.keep)
    fold(model, layer, "a")
    assert isinstance(model.get_submodule(layer), TransformedLinear)
    fold(model, layer, "b")
    assert type(model.get_submodule(layer)) is nn.Linear
    assert torch.equal(model.get_parameter(NAME), dense * a.keep * b.keep)
