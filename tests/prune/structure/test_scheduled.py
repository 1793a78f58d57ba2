"""Pruning heads and neurons as passes: schedules, limits, what is asked for and cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cook
from cook.data.calibration import given
from cook.errors import CookError
from cook.model.arch import units
from cook.model.arch.anatomy import Anatomy
from cook.model.probe.measure import tally
from cook.pipeline.plan import plan_passes
from tests.helpers import bound, families, tiny

EXAMPLES = given([tiny.batch(size=8, seed=5)])


def counts(model: Any, kind: str = "heads") -> list[int]:
    return [each.count for each in getattr(units, kind)(Anatomy(model))]


def meta(**options: Any) -> Any:
    with torch.device("meta"):
        return tiny.model(**options)


def test_heads_go_in_steps_and_stay_gone():
    model = tiny.model(layers=3)
    options = {"sparsity": 0.5, "schedule": "linear", "every": 2, "end": 8}
    session = bound.session(model, {"prune.heads": options}, calibration=EXAMPLES)
    (each,) = session.passes
    gone, kept = [], [stays.clone() for stays in each.keep]
    for _ in bound.steps(session, 10):
        gone.append(sum(int((~stays).sum()) for stays in each.keep))
        assert all(bool((before | ~after).all()) for before, after in zip(kept, each.keep, strict=True))
        kept = [stays.clone() for stays in each.keep]
        for part, stays in zip(each.chosen, each.keep, strict=True):
            for name, mask in units.masks(model, part, stays):
                assert bool((model.get_parameter(name)[~mask] == 0).all())
    assert gone == [0, 0, 2, 2, 3, 3, 4, 6, 6, 6]
    assert counts(model) == [4, 4, 4]
    before = bound.logits(model)
    session.finish()
    torch.testing.assert_close(bound.logits(model), before, rtol=0, atol=1e-6)
    assert sum(counts(model)) == 6
    assert session.facts["prune.heads"]["removed"] == 6


def test_what_is_held_at_zero_counts_as_removed():
    model = tiny.model()
    session = bound.session(
        model, {"prune.neurons": {"sparsity": 0.5, "schedule": "constant"}}, calibration=EXAMPLES
    )
    session.before_step(0)
    held = tally(model, None, session.masks)
    assert held.parameters < tally(model).parameters
    session.finish()
    assert (held.parameters, held.bytes) == (tally(model).parameters, tally(model).bytes)


def test_rounded_layers_count_what_leaves_as_well():
    model = tiny.model()
    passes = ({"prune.heads": {"sparsity": 0.5, "scope": "layer"}}, {"quant.qat": {"weights": "int4"}})
    session = bound.session(model, *passes, steps=0, calibration=EXAMPLES)
    held = tally(model, None, session.masks)
    session.finish()
    assert (held.parameters, held.bytes) == (tally(model).parameters, tally(model).bytes)


def test_the_share_of_zeros_is_of_what_stays():
    model = tiny.model()
    passes = ({"prune.weights": {"sparsity": 0.5}}, {"prune.neurons": {"sparsity": 0.5}})
    session = bound.session(model, *passes, calibration=EXAMPLES)
    bound.train(session)
    session.finish()
    facts = session.facts["prune.weights"]
    assert facts["of"] == 2 * (4 * 16 * 16 + 2 * 16 * 16)
    assert facts["zeros"] == facts["of"] // 2


def test_widths_are_multiples_that_hardware_likes():
    model = tiny.model(width=32)
    session = bound.session(model, {"prune.neurons": {"sparsity": 0.4}}, steps=0, calibration=EXAMPLES)
    session.finish()
    assert all(width % 8 == 0 for width in counts(model, "neurons"))
    assert sum(counts(model, "neurons")) == 128 - 48  # of 51 the nearest multiple


def test_gradients_find_the_head_that_does_nothing():
    model = tiny.model()
    for layer, head in ((0, 2), (1, 1)):
        values = model.bert.encoder.layer[layer].attention.self.value
        with torch.no_grad():
            values.weight[4 * head : 4 * head + 4] = 0
            values.bias[4 * head : 4 * head + 4] = 0
    session = bound.session(model, {"prune.heads": {"sparsity": 0.25}}, steps=0, calibration=EXAMPLES)
    (each,) = session.passes
    assert [(~stays).nonzero().flatten().tolist() for stays in each.keep] == [[2], [1]]


def test_equal_results_are_saved_plain(tmp_path):
    config = {"version": 1, "passes": [{"prune.neurons": {"sparsity": 0.5, "scope": "layer"}}]}
    result = cook.apply(tiny.model(), config, calibration=[tiny.batch()])
    assert result.model.config.intermediate_size == 16
    assert not hasattr(result.model.config, "quantization_config")
    uneven = {"version": 1, "passes": [{"prune.heads": {"sparsity": 0.25, "importance": "magnitude"}}]}
    result = cook.apply(tiny.model(), uneven)
    assert result.model.config.quantization_config.quant_method == "cook"


@pytest.mark.parametrize(
    ("item", "message", "hint"),
    [
        ({"prune.heads": {"sparsity": 0.9}}, "7 of 8 heads would go, the layers can spare 6", "at most 0.75"),
        (
            {"prune.heads": {"sparsity": 0.5, "minimum": 3}},
            "4 of 8 heads would go, the layers can spare 2",
            "minimum 3",
        ),
        (
            {"prune.neurons": {"sparsity": 0.6, "limit": 0.5}},
            "38 of 64 neurons would go, the layers can spare 32",
            "limit 0.5",
        ),
        ({"prune.heads": {"sparsity": 0.01}}, "0.01 of 8 heads is less than one", "0.125"),
        (
            {"prune.heads": {"sparsity": 0.1, "scope": "layer"}},
            "0.1 of 4 heads of a layer is less than one",
            "0.25",
        ),
        ({"prune.neurons": {"sparsity": 0.05}}, "0.05 of 64 neurons is less than one", "0.125"),
        (
            {"prune.heads": {"sparsity": 0.5, "include": ["ffn"]}},
            "no layer that is selected has any",
            None,
        ),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(item, message, hint):
    with pytest.raises(CookError, match=message) as told:
        plan_passes(meta(), bound.passes(item))
    assert hint is None or hint in told.value.hint
    assert "passes[0]" in told.value.where


def test_groups_of_queries_are_named_as_what_they_are():
    with pytest.raises(CookError, match="4 of 4 groups of 2 heads with one key would go"):
        plan_passes(meta(family="llama"), bound.passes({"prune.heads": {"sparsity": 0.9}}))
    ((_, effect),) = plan_passes(meta(family="llama"), bound.passes({"prune.heads": {"sparsity": 0.5}}))
    assert effect.note.startswith("2 of 4 groups of 2 heads with one key leave")


def test_layers_that_must_keep_the_same_heads_are_chosen_together():
    with torch.device("meta"):
        model = families.made("t5", device="meta")
    half = {"sparsity": 0.5, "include": ["*.block.0.*"]}
    with pytest.raises(CookError, match="all of them must keep the same") as told:
        plan_passes(model, bound.passes({"prune.heads": half}))
    assert "together" in told.value.hint
    whole = {"sparsity": 0.5, "include": ["*.encoder.*"]}
    ((_, effect),) = plan_passes(model, bound.passes({"prune.heads": whole}))
    assert effect.claims == {
        "heads of transformer.encoder.block.0.layer.0.SelfAttention.o and 1 more",
    }


def test_two_passes_cannot_claim_the_same_layers():
    first = {"prune.heads": {"sparsity": 0.25, "include": ["layers[0]"]}}
    second = {"prune.heads": {"sparsity": 0.25}}
    with pytest.raises(CookError, match=r"prune\.heads acts on the heads of") as told:
        plan_passes(meta(), bound.passes(first, second))
    assert "passes[1]" in told.value.where
    assert "exclude" in told.value.hint
    other = {"prune.heads": {"sparsity": 0.25, "include": ["layers[1]"]}}
    assert len(plan_passes(meta(), bound.passes(first, other))) == 2


def test_gradients_need_examples_with_labels():
    model = tiny.model()
    with pytest.raises(CookError, match="needs examples to look at") as told:
        bound.session(model, {"prune.heads": {"sparsity": 0.5}})
    assert "calibration=" in told.value.hint
    without = given([{k: v for k, v in tiny.batch().items() if k != "labels"}])
    with pytest.raises(CookError, match="no labels") as told:
        bound.session(model, {"prune.heads": {"sparsity": 0.5}}, steps=0, calibration=without)
    assert "magnitude" in told.value.hint


def test_an_unknown_family_has_no_heads_to_find():
    model = meta()
    model.config.model_type = "tower"
    model.bert.encoder.layer[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(CookError, match="parts of a 'tower' model"):
        plan_passes(model, bound.passes({"prune.heads": {"sparsity": 0.5}}))


def test_a_pattern_and_columns_that_leave():
    pattern, heads, neurons = (
        {"prune.weights": {"pattern": "2:4"}},
        {"prune.heads": {"sparsity": 0.25}},
        {"prune.neurons": {"sparsity": 0.5}},
    )
    assert len(plan_passes(meta(), bound.passes(pattern, heads))) == 2  # a head is four columns wide
    for order in ((pattern, neurons), (neurons, pattern)):
        with pytest.raises(CookError, match="loses columns 1 at a time, which tears the groups of 4") as told:
            plan_passes(meta(), bound.passes(*order))
        assert "[bert.encoder.layer.0.output.dense" in told.value.hint
    apart = {"prune.weights": {"pattern": "2:4", "exclude": ["*.output.dense"]}}
    assert len(plan_passes(meta(), bound.passes(apart, neurons))) == 2


def test_a_pattern_survives_heads_that_leave():
    model = tiny.model()
    passes = ({"prune.weights": {"pattern": "2:4"}}, {"prune.heads": {"sparsity": 0.25}})
    session = bound.session(model, *passes, calibration=EXAMPLES)
    bound.train(session)
    session.finish()
    for layer in model.bert.encoder.layer:
        rows = layer.attention.output.dense.weight
        assert bool(((rows.unflatten(1, (-1, 4)) != 0).sum(-1) == 2).all())


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", ["magnitude", "movement", "wanda", "sparsegpt"])
def test_the_share_of_zeros_is_of_what_stays_by_every_method(method, family):
    model = tiny.model(family)
    passes = (
        {"prune.heads": {"sparsity": 0.5, "importance": "magnitude", "schedule": "constant"}},
        {"prune.neurons": {"sparsity": 0.5, "importance": "magnitude", "schedule": "constant"}},
        {"prune.weights": {"sparsity": 0.5, "method": method}},
    )
    examples = given([tiny.batch(family, size=16, seed=5)])
    session = bound.session(model, *passes, calibration=examples)
    bound.train(session, family)
    before = bound.logits(model, family)
    session.finish()
    torch.testing.assert_close(bound.logits(model, family), before, rtol=0, atol=1e-5)
    facts = session.facts["prune.weights"]
    assert facts["zeros"] == pytest.approx(facts["of"] / 2, abs=1)


@pytest.mark.parametrize("method", ["movement", "soft-movement"])
def test_a_loop_that_ends_early(method):
    model = tiny.model()
    late = {"method": method, "start": "30%", **({"sparsity": 0.5} if method == "movement" else {})}
    passes = (
        {"prune.heads": {"sparsity": 0.5, "importance": "magnitude", "end": "20%"}},
        {"prune.weights": late},
    )
    session = bound.session(model, *passes)
    for _ in bound.steps(session, 5, rate=1e-3):
        pass
    session.finish()
    assert sum(counts(model)) == 4
    assert torch.isfinite(bound.logits(model)).all()


def test_labels_that_are_not_shifted():
    from transformers import BertForMaskedLM

    from cook.model.calibration.statistics import loss_shares

    model = BertForMaskedLM(tiny.model().config)
    labels = torch.tensor([[3, -100, 4], [-100, 5, -100]])
    outputs = model.eval()(input_ids=torch.tensor([[5, 6, 7], [8, 9, 8]]), labels=labels)
    assert loss_shares(model, {"labels": labels}, 2, outputs).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_importance_needs_something_to_look_at():
    with pytest.raises(CookError, match="no calibration examples to look at"):
        cook.apply(
            tiny.model(), {"version": 1, "passes": [{"prune.heads": {"sparsity": 0.5}}]}, calibration=[]
        )


def test_a_layer_that_cannot_spare_its_share_is_named():
    half = {"sparsity": 0.5, "importance": "magnitude", "include": ["layers[0]"]}
    model = cook.apply(tiny.model(), {"version": 1, "passes": [{"prune.heads": half}]}).model
    third = {"sparsity": 0.34, "importance": "magnitude", "scope": "layer", "minimum": 2}
    with pytest.raises(CookError, match=r"1 of 2 heads of .*layer\.0.* would go, it can spare 0") as told:
        cook.apply(model, {"version": 1, "passes": [{"prune.heads": third}]})
    assert "scope: global" in told.value.hint
