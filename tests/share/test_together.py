"""Other passes on layers that share: what works goes once and together, and the rest is refused at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cook.data.calibration import given
from cook.errors import CookError
from cook.model.arch import units
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.families import FAMILIES
from cook.model.hub import folder
from cook.model.nn.integer import IntLinear
from cook.model.probe.measure import tally
from cook.pipeline.plan import plan_passes
from cook.prune.structure.importance import gradient_importance
from tests.helpers import bound, tiny
from tests.share.test_layers import by_parameter, unshared

EXAMPLES = given([tiny.batch(size=8, seed=5)])
SHARE = {"share.layers": {"groups": 2}}
RELAXED = {"share.layers": {"groups": 2, "residual": 2}}


def meta(family: str = "bert") -> Any:
    with torch.device("meta"):
        return tiny.model(family, layers=4)


def planned(*items: Any, family: str = "bert") -> Any:
    """The model that a plan leaves, without weights."""
    model = meta(family)
    plan_passes(model, bound.passes(*items))
    return model


def compressed(*items: Any, family: str = "bert", steps: int = 4, **options: Any) -> tuple[Any, Any]:
    """A finished model, and its session; finishing changed no output."""
    model = tiny.model(family, layers=4)
    session = bound.session(model, *items, steps=steps, **options)
    bound.train(session, family)
    session.before_step(steps)
    before = bound.logits(model, family)
    session.finish()
    torch.testing.assert_close(bound.logits(model, family), before, rtol=0, atol=1e-5)
    return model, session


def sharing(model: nn.Module) -> int:
    """How many numbers there would be more if nothing were shared."""
    return sum(each.numel() for each in unshared(model).parameters()) - tally(model).parameters


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("share", [SHARE, RELAXED], ids=["plain", "residual"])
def test_zeros_of_a_shared_weight_are_counted_once(family, share):
    model, session = compressed(share, {"prune.weights": {"sparsity": 0.5}}, family=family)
    facts = session.facts["prune.weights"]
    layers = tuple(f"{layer}." for layer in Anatomy(model).layers)
    matrices = [each for name, each in model.named_parameters() if name.startswith(layers) and each.ndim == 2]
    assert facts["of"] == sum(each.numel() for each in matrices)
    assert facts["zeros"] == sum(int((each == 0).sum()) for each in matrices) <= tally(model).zeros
    assert facts["sparsity"] == pytest.approx(0.5, abs=0.01)
    (whole,) = [
        effect.zeros
        for each, effect in plan_passes(
            meta(family), bound.passes(share, {"prune.weights": {"sparsity": 0.5}})
        )
        if each.id == "prune.weights"
    ]
    assert whole == facts["zeros"]


def test_a_mask_is_found_by_either_name():
    model = tiny.model(layers=4)
    session = bound.session(model, SHARE, steps=4)
    one, other = (f"bert.encoder.layer.{number}.output.dense.weight" for number in (0, 1))
    keep = torch.rand(16, 32) < 0.5
    session.masks.set("someone", other, keep)
    assert session.masks.get("someone", one) is session.masks.get("someone", other) is keep
    assert bool((model.get_parameter(one)[~keep] == 0).all())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "movement", "soft-movement"])
def test_methods_that_see_one_layer_are_refused(method):
    options = {"method": method, **({} if method == "soft-movement" else {"sparsity": 0.5})}
    items = SHARE, {"prune.weights": options}
    words = "soft mask would not reach" if "movement" in method else f"{method} sees no inputs of"
    for act in (
        lambda: planned(*items),
        lambda: bound.session(tiny.model(layers=4), *items, calibration=EXAMPLES),
    ):
        with pytest.raises(CookError, match=words) as caught:
            act()
        assert str(caught.value.where).startswith("<dict>: passes[1]")
        assert "magnitude" in str(caught.value.hint)


PRUNED = {
    "heads": {"prune.heads": {"sparsity": 0.5, "schedule": "constant"}},
    "neurons": {"prune.neurons": {"sparsity": 0.5, "multiple": 1, "importance": "magnitude"}},
    "layer": {"prune.neurons": {"sparsity": 0.5, "multiple": 1, "scope": "layer"}},
    "macs": {"prune.units": {"budget": {"macs": 0.6}, "multiple": 1}},
    "parameters": {"prune.units": {"budget": {"parameters": 0.8}, "multiple": 1}},
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("share", [SHARE, RELAXED], ids=["plain", "residual"])
@pytest.mark.parametrize("how", PRUNED)
def test_units_of_shared_layers_leave_together(family, share, how, tmp_path):
    item = copy.deepcopy(PRUNED[how])
    if family == "llama" and "prune.heads" in item:
        item["prune.heads"]["sparsity"] = 0.25
    examples = given([tiny.batch(family, size=8, seed=5)])
    model, session = compressed(share, item, family=family, calibration=examples)
    assert len(units.heads(Anatomy(model))) == len(units.neurons(Anatomy(model))) == 2
    assert sharing(model) > 0
    (name,) = item
    facts = session.facts[name]
    assert facts["removed"] > 0
    whole = tally(tiny.model(family, layers=4)).parameters - session.facts["share.layers"]["saved"]
    assert whole - tally(model).parameters == facts["parameters"]
    if "budget" in item[name]:
        assert facts["reached"] <= facts["asked"] + 1e-9
    else:
        assert tally(planned(share, item, family=family)).bytes == tally(model).bytes
    model.save_pretrained(tmp_path)
    assert folder.weight_bytes(tmp_path) == tally(model).bytes
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(bound.logits(again, family), bound.logits(model, family))
    assert tally(again) == tally(model)


def test_the_importance_of_a_shared_unit_is_that_of_closing_it_everywhere():
    """The slope of a joint gate is the sum of those of its layers, example by example."""
    model = tiny.model(layers=4).eval()
    bound.session(model, {"share.layers": {"groups": "all"}}, steps=0).finish()
    apart = unshared(model)
    examples = [
        {name: each[row : row + 1] for name, each in tiny.batch(size=1, seed=row).items()} for row in range(3)
    ]
    for find in (units.heads, units.neurons):
        (together,) = gradient_importance(model, [examples[0]], find(Anatomy(model)))
        joint = units._together(find(Anatomy(apart)))
        (expected,) = gradient_importance(apart, [examples[0]], [joint])
        torch.testing.assert_close(together, expected)
        each = gradient_importance(apart, [examples[0]], find(Anatomy(apart)))
        assert bool((together <= torch.stack(each).sum(0) + 1e-6).all())


def test_layers_that_share_are_included_together():
    item = {"prune.heads": {"sparsity": 0.5, "include": ["layers[0]"]}}
    with pytest.raises(CookError, match="all of them must keep the same"):
        planned(SHARE, item)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("share", [SHARE, RELAXED], ids=["plain", "residual"])
def test_gates_of_shared_units_become_final_together(family, share):
    item = {"prune.structured": {"budget": {"macs": 0.7}, "end": 4, "speed": 500}}
    examples = given([tiny.batch(family, size=8, seed=5)])
    model, session = compressed(share, item, family=family, steps=6, calibration=examples)
    assert session.facts["prune.structured"]["reached"] <= 0.7 + 1e-9
    assert sharing(model) > 0


@pytest.mark.parametrize("share", [SHARE, RELAXED], ids=["plain", "residual"])
def test_a_narrower_model_shares_too(share):
    item = {
        "prune.structured": {"budget": {"macs": 0.5}, "gates": ["neurons", "hidden"], "end": 4, "speed": 500}
    }
    model, session = compressed(share, item, steps=6, calibration=EXAMPLES)
    assert session.facts["prune.structured"]["hidden"] < 16
    assert sharing(model) > 0


@pytest.mark.parametrize(
    ("item", "numbers"),
    [
        ({"prune.layers": {"keep": [0, 1, 2]}}, "3"),
        ({"prune.layers": {"count": 2, "choose": "top"}}, "2, 3"),
        ({"prune.layerdrop": {"keep": [0]}}, "1, 2, 3"),
        ({"prune.structured": {"budget": {"macs": 0.5}, "gates": ["layers"]}}, "0, 1, 2, 3"),
    ],
)
def test_leaving_out_layers_that_share_is_refused_by_number(item, numbers):
    for items in ((SHARE, item), (item, SHARE)):
        if "prune.layers" in item and items[0] is item:
            continue  # what is left may share, in groups that fit
        with pytest.raises(CookError, match=rf"share parameters with others: {numbers}\n") as caught:
            planned(*items)
        assert "passes[" in str(caught.value.where)
    if "prune.layers" in item:
        with pytest.raises(CookError, match=rf"share parameters with others: {numbers}\n"):
            bound.session(tiny.model(layers=4), SHARE, item)


def test_a_layer_that_shares_with_none_may_go():
    model = tiny.model(layers=4)
    items = {"share.layers": {"groups": [[0, 1], [2], [3]]}}, {"prune.layers": {"keep": [0, 1, 3]}}
    planned(*items)
    bound.session(model, *items, steps=0).finish()
    assert model.config.num_hidden_layers == 3
    assert {len(names) for names in by_parameter(model).values()} == {1, 2}


def test_rounding_a_part_of_what_shares_is_refused():
    item = {"quant.qat": {"include": ["layers[0:3]"]}}
    with pytest.raises(
        CookError, match=r"layer\.3\.\S+ and \S+layer\.2\.\S+ share their parameters"
    ) as caught:
        planned(SHARE, item)
    assert caught.value.where == "<dict>: passes[1]"
    session = bound.session(tiny.model(layers=4), SHARE, item, steps=2)
    bound.train(session)
    with pytest.raises(CookError, match="share their parameters"):
        session.finish()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_shared_integers_are_planned_and_counted_once(family):
    items = RELAXED, {"quant.qat": {"observer": "moving", "freeze": 3}}
    model = tiny.model(family, layers=4)
    session = bound.session(model, *items, steps=4)
    bound.train(session, family)
    trained = tally(model)
    session.finish()
    assert (trained.parameters, trained.bytes) == (tally(model).parameters, tally(model).bytes)
    assert tally(planned(*items, family=family)).bytes == tally(model).bytes
    scales = [each.input_scale for each in model.modules() if isinstance(each, IntLinear)]
    assert len({id(each) for each in scales}) == len(scales)


def test_a_folder_that_shares_is_no_model_to_drop_layers_from(tmp_path):
    model = tiny.model(layers=4)
    bound.session(model, SHARE, steps=0).finish()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with pytest.raises(CookError, match="share parameters with others: 2, 3"):
        plan_passes(again, bound.passes({"prune.layers": {"count": 2, "choose": "top"}}))
    with pytest.raises(CookError, match="shared already"):
        plan_passes(again, bound.passes({"share.layers": {"groups": "all"}}))


def test_a_finished_model_that_shares_is_pruned_again(tmp_path):
    model = tiny.model(layers=4)
    bound.session(model, RELAXED, steps=0).finish()
    model.save_pretrained(tmp_path / "one")
    again = type(model).from_pretrained(tmp_path / "one")
    session = bound.session(again, PRUNED["layer"], steps=0, calibration=EXAMPLES)
    session.finish()
    again.save_pretrained(tmp_path / "two")
    last = type(model).from_pretrained(tmp_path / "two")
    assert torch.equal(bound.logits(last), bound.logits(again))
    assert tally(last) == tally(again)
    assert tally(last).parameters < tally(model).parameters


def test_a_family_without_an_entry_is_known_with_residuals_too(monkeypatch):
    entries = {name: family for name, family in FAMILIES.items() if name != "llama"}
    monkeypatch.setattr("cook.model.arch.anatomy.FAMILIES", entries)
    model = tiny.model("llama", layers=4)
    bound.session(model, RELAXED, steps=0).finish()
    assert len(units.heads(Anatomy(model))) == 2
