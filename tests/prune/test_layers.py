"""Layers that are left out: which ones, what stays numbered, and what comes out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

import cook
from cook.data import calibration
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.depth import compact, left_out, skips
from cook.model.edits.edit import Edit
from cook.pipeline.plan import plan_passes
from cook.prune.layers import block_influence, chosen
from tests.helpers import bound, families, tiny

DROPPABLE = [family for family in families.ALL if family not in ("albert", "t5")]
EXAMPLES = calibration.given([tiny.batch(size=8, seed=5)])


def meta(**options: Any) -> Any:
    with torch.device("meta"):
        return tiny.model(**options)


@given(layers=st.integers(2, 48), data=st.data())
def test_so_many_stay_in_order(layers, data):
    count = data.draw(st.integers(1, layers - 1))
    for choose in ("top", "bottom", "alternate"):
        kept = chosen(layers, count, choose)
        assert len(kept) == count
        assert kept == sorted(set(kept))
        assert 0 <= kept[0] <= kept[-1] < layers
    assert chosen(layers, count, "top")[0] == 0
    assert chosen(layers, count, "bottom")[-1] == chosen(layers, count, "alternate")[-1] == layers - 1


def test_choices_by_name():
    assert chosen(12, 4, "alternate") == [2, 5, 8, 11]
    assert chosen(6, 2, "top") == [0, 1]
    with pytest.raises(ValueError, match="no choice 'random'"):
        chosen(6, 2, "random")


@pytest.mark.parametrize("family", DROPPABLE)
def test_influence_is_one_minus_the_mean_cosine(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    batch, layers = families.batch(family), Anatomy(model).layers
    states: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for name in layers:
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, named, output, name=name: states[name].extend(
                [
                    inputs[0] if inputs else named["hidden_states"],
                    output if torch.is_tensor(output) else output[0],
                ]
            ),
            with_kwargs=True,
        )
    some, other = ({name: value[part] for name, value in batch.items()} for part in (slice(2), slice(2, 3)))
    with torch.no_grad():
        model(**batch)
    wanted = []
    for name in layers:
        inner, outer = states[name]
        cosines = [
            float(functional.cosine_similarity(inner[row, token], outer[row, token], dim=0))
            for row in range(3)
            for token in range(inner.shape[1])
            if "attention_mask" not in batch or batch["attention_mask"][row, token]
        ]
        wanted.append(1 - sum(cosines) / len(cosines))
        model.get_submodule(name)._forward_hooks.clear()
    found = block_influence(model, [some, other], layers)
    if family in families.ENCODER_DECODER:
        assert found[:2] == pytest.approx(wanted[:2], abs=1e-5)  # a decoder's tokens are of its own
    else:
        assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("family", DROPPABLE)
def test_left_out_and_then_gone_gives_the_same(family, tmp_path):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    layers = Anatomy(model).layers
    edits = skips(Anatomy(model), [layers[0]])
    Blueprint(edits=edits).apply(model)
    assert Anatomy(model).layers == layers
    assert Anatomy(model).live == layers[1:]
    with torch.no_grad():
        skipped = model(**families.batch(family)).logits
    left = compact(model, Blueprint(edits=edits))
    assert left.edits == []
    with torch.no_grad():
        assert torch.equal(model(**families.batch(family)).logits, skipped)
    assert Anatomy(model).layers == layers[:1] + (layers[2:] if family == "bart" else [])
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, attn_implementation=model.config._attn_implementation)
    with torch.no_grad():
        assert torch.equal(again(**families.batch(family)).logits, skipped)


def test_other_edits_follow_the_new_numbers():
    model = tiny.model(layers=3)
    sizes = {"in": 16, "out": 16}
    blueprint = Blueprint(
        edits=[
            *skips(Anatomy(model), ["bert.encoder.layer.1"]),
            Edit("resize", "bert.encoder.layer.2.attention.output.dense", sizes),
            Edit("resize", "bert.encoder.layer.0.attention.output.dense", sizes),
        ]
    )
    blueprint.apply(model)
    names = [edit.module for edit in compact(model, blueprint).edits]
    assert names == [f"bert.encoder.layer.{n}.attention.output.dense" for n in (1, 0)]


def test_numbers_are_those_of_the_whole_model_for_every_pass():
    model = tiny.model(layers=4)
    whole = copy.deepcopy(model)
    passes = (
        {"distill.tinybert": {"parts": ["hidden"]}},
        {"prune.heads": {"sparsity": 0.5, "importance": "magnitude", "include": ["layers[3]"]}},
        {"quant.qat": {"include": ["layers[1]"]}},
        {"prune.layers": {"keep": [1, 3]}},
    )
    session = bound.session(model, *passes, teacher="self", calibration=EXAMPLES)
    assert [pair.student for pair in session.passes[0].watched] == ["layers[1].output", "layers[3].output"]
    assert [pair.teacher for pair in session.passes[0].watched] == ["layers[1].output", "layers[3].output"]
    bound.train(session)
    before = bound.logits(model)
    session.finish()
    torch.testing.assert_close(bound.logits(model), before, rtol=0, atol=1e-5)
    assert model.config.num_hidden_layers == 2
    layers = model.bert.encoder.layer
    assert [type(each.attention.self.query).__name__ for each in layers] == ["IntLinear", "Linear"]
    assert [each.attention.self.query.weight.shape[0] for each in layers] == [16, 8]
    assert {edit.module.split(".")[3] for edit in session.blueprint.edits if edit.op == "integer"} == {"0"}
    assert len(whole.bert.encoder.layer) == 4


def test_the_layer_that_does_nothing_goes():
    model = tiny.model("llama", layers=3)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    config = {"version": 1, "passes": [{"prune.layers": {"count": 2}}]}
    with torch.no_grad():
        before = model.eval()(**tiny.batch("llama")).logits
    result = cook.apply(model, config, calibration=[tiny.batch("llama")])
    facts = result.report.passes[0].facts
    assert facts["kept"] == [0, 2]
    assert facts["influence"][1] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(result.model(**tiny.batch("llama")).logits, before)
    assert [layer.self_attn.layer_idx for layer in result.model.model.layers] == [0, 1]
    assert not hasattr(result.model.config, "quantization_config")


def test_entries_a_layer_follow():
    model = families.made("qwen3", layer_types=["full_attention", "sliding_attention"], sliding_window=3)
    edits = skips(Anatomy(model), ["model.layers.0"])
    Blueprint(edits=edits).apply(model)
    compact(model, Blueprint(edits=edits))
    assert model.config.layer_types == ["sliding_attention"]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"keep": [0, 2]}, "there is no layer 2: the model has 2, 0 to 1", None),
        ({"keep": [1, 0]}, "does not increase", "once"),
        ({"keep": [0, 1]}, "all 2 layers stay", "leave the pass out"),
        ({"count": 2}, "2 layers would stay, the model has 2", "at most 1"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(options, message, hint):
    with pytest.raises(CookError, match=message) as told:
        plan_passes(meta(), bound.passes({"prune.layers": options}))
    assert hint is None or hint in told.value.hint
    assert "passes[0]" in told.value.where


@pytest.mark.parametrize("options", [{}, {"keep": [0], "count": 1}])
def test_either_keep_or_count(options):
    with pytest.raises(CookError, match="either keep or count"):
        bound.passes({"prune.layers": options})


@pytest.mark.parametrize("family", ["albert", "t5"])
def test_families_whose_layers_hang_together(family):
    model = families.made(family, device="meta")
    with pytest.raises(CookError, match=r"position biases too|runs several times"):
        plan_passes(model, bound.passes({"prune.layers": {"keep": [0]}}))


def test_encoder_and_decoder_keep_one_each():
    model = families.made("bart", device="meta")
    with pytest.raises(CookError, match="no layer would be left of 2 to 3"):
        plan_passes(model, bound.passes({"prune.layers": {"keep": [0, 1]}}))
    with pytest.raises(CookError, match="layers of several kinds") as told:
        plan_passes(model, bound.passes({"prune.layers": {"count": 2, "choose": "top"}}))
    assert "keep" in told.value.hint


def test_a_target_that_is_left_out():
    passes = bound.passes({"quant.qat": {"include": ["layers[0]"]}}, {"prune.layers": {"keep": [1]}})
    with pytest.raises(CookError, match=r"layers\[0\] is left out by another pass") as told:
        plan_passes(meta(), passes)
    assert "passes[0]" in told.value.where


def test_what_was_done_to_a_layer_goes_with_it(tmp_path):
    heads = {"sparsity": 0.5, "importance": "magnitude", "include": ["layers[0]"]}
    first = cook.apply(tiny.model(layers=3), {"version": 1, "passes": [{"prune.heads": heads}]}).model
    assert first.config.quantization_config is not None
    again = {"version": 1, "passes": [{"prune.layers": {"keep": [1, 2]}}]}
    second = cook.apply(first, again).model
    assert not hasattr(second.config, "quantization_config")
    second.save_pretrained(tmp_path / "without")
    heads["include"] = ["layers[2]"]
    third = cook.apply(tiny.model(layers=3), {"version": 1, "passes": [{"prune.heads": heads}]}).model
    last = cook.apply(third, again).model
    last.save_pretrained(tmp_path / "with")
    loaded = type(last).from_pretrained(tmp_path / "with")
    assert torch.equal(bound.logits(loaded), bound.logits(last))
    assert loaded.bert.encoder.layer[1].attention.self.num_attention_heads == 2


def test_layers_of_an_inferred_family():
    config = AutoConfig.for_model("granite", **families.SETTINGS["llama"])
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.arange(5, 11)[None]
    passes = [{"prune.layers": {"keep": [1]}}, {"prune.heads": {"sparsity": 0.5, "importance": "magnitude"}}]
    result = cook.apply(model, {"version": 1, "passes": passes})
    assert result.model.config.num_hidden_layers == 1
    assert torch.isfinite(result.model(tokens).logits).all()


def test_a_folder_cannot_bring_a_layer_that_is_left_out():
    edits = [edit.to_dict() for edit in skips(Anatomy(tiny.model()), ["bert.encoder.layer.1"])]
    with pytest.raises(CookError, match="'skip' cannot stand in a folder"):
        Blueprint.from_dict({**Blueprint().to_dict(), "edits": edits})


def test_a_convolution_behind_the_first_layer_would_move():
    config = AutoConfig.for_model("deberta-v2", **families.SETTINGS["deberta-v2"], conv_kernel_size=3)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(CookError, match="a convolution behind its first layer"):
        plan_passes(model, bound.passes({"prune.layers": {"keep": [1]}}))


@pytest.mark.parametrize("kind", ["megatron-bert", "rembert"])
def test_layers_that_may_give_more_than_states_are_not_left_out(kind):
    config = AutoConfig.for_model(kind, **families.SETTINGS["bert"])
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    assert len(Anatomy(model).layers) == 2
    with pytest.raises(CookError, match="give each other perhaps more than their states"):
        plan_passes(model, bound.passes({"prune.layers": {"keep": [1]}}))


@pytest.mark.parametrize("given_out", [None, [1, 3]])
def test_a_backbone_counts_its_stages_anew(given_out, tmp_path):
    settings = {**families.SETTINGS["vit"], "num_hidden_layers": 4, "mlp_ratio": 2, "out_indices": given_out}
    del settings["intermediate_size"]
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model("dinov2", **settings)).eval()
    with left_out(Anatomy(model), Anatomy(model).layers[1:2]):
        expected = model(**families.batch("vit")).logits
    result = cook.apply(model, {"version": 1, "passes": [{"prune.layers": {"keep": [0, 2, 3]}}]}).model
    result.save_pretrained(tmp_path)
    back = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(back(**families.batch("vit")).logits, expected)
    assert back.config.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert list(back.config.out_indices) == ([3] if given_out is None else [1, 2])


PADDING = {**tiny.batch(size=2), "attention_mask": torch.zeros(2, 7, dtype=torch.long)}


@pytest.mark.parametrize("examples", [[], [PADDING]])
def test_influence_needs_something_to_look_at(examples):
    with pytest.raises(CookError, match="no calibration tokens"):
        cook.apply(
            tiny.model(), {"version": 1, "passes": [{"prune.layers": {"count": 1}}]}, calibration=examples
        )


def test_influence_of_no_numbers_is_none():
    model = tiny.model()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(CookError, match="no finite number"):
        cook.apply(
            model,
            {"version": 1, "passes": [{"prune.layers": {"count": 1}}]},
            calibration=[tiny.batch(size=4)],
        )
