"""Quantisation-aware training in a session: windows, observers, folding, and other passes beside it."""

import pytest
import torch

import cook
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.nn.integer import IntLinear, unpack
from cook.model.nn.masks import fold, soften
from cook.model.nn.transformed import TransformedLinear
from cook.quant.fake import FakeQuantMoving
from tests.helpers import bound, families, processes, tiny
from tests.helpers.tiny import FAMILIES

CONFIGURATIONS = [
    {},
    {"observer": "moving"},
    {"weights": "int4", "activations": None},
    {"weights": "int3", "activations": "int6"},
    {"weights": "int6", "activations": "int6"},
]


def integers(model) -> dict[str, IntLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, IntLinear)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_folding_gives_equal_outputs(family, options):
    model = tiny.model(family)
    dense = tiny.model(family)
    session = bound.session(model, {"quant.qat": options}, steps=4)
    bound.train(session, family)
    trained = bound.logits(model, family)
    assert not torch.equal(trained, bound.logits(dense, family))
    session.finish()
    torch.testing.assert_close(bound.logits(model, family), trained, rtol=1e-4, atol=1e-6)
    found = integers(model)
    assert sorted(found) == sorted(session.passes[0].layers)
    assert not any(isinstance(module, TransformedLinear) for module in model.modules())
    bits = int(options.get("weights", "int8")[3:])
    stored = 8 if bits == 6 else bits
    for layer in found.values():
        assert layer.bits == stored
        assert unpack(layer.weight, stored, layer.in_features).abs().max() == 2 ** (bits - 1) - 1
    assert {edit.options["bits"] for edit in session.blueprint.edits} == {stored}
    said = "rounded to int6, stored as int8" if bits == 6 else f"stored as int{bits}"
    assert said in session.facts["quant.qat"]["note"]
    assert [edit.module for edit in session.blueprint.edits] == session.passes[0].layers
    assert session.facts["quant.qat"]["layers"] == len(found)
    assert session.facts["quant.qat"].get("activation_bits") == (
        None if "activations" in options and options["activations"] is None else 6 if bits in (3, 6) else 8
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_without_training_it_rounds_at_once(family):
    model = tiny.model(family)
    dense = bound.logits(model, family)
    session = bound.session(model, "quant.qat", steps=0)
    rounded = bound.logits(model, family)
    assert 0 < (rounded - dense).abs().max() < 0.1 * dense.abs().max() + 0.01
    session.finish()
    torch.testing.assert_close(bound.logits(model, family), rounded, rtol=1e-4, atol=1e-6)


def test_it_starts_when_told_and_then_stays():
    model, dense = tiny.model().eval(), tiny.model().eval()
    session = bound.session(model, {"quant.qat": {"start": "40%"}})
    for step in range(10):
        session.before_step(step)
        same = torch.equal(bound.logits(model), bound.logits(dense))
        assert same == (step < 4), step
    session.before_step(10)
    assert not torch.equal(bound.logits(model), bound.logits(dense))


def test_there_is_no_end():
    with pytest.raises(CookError, match="end"):
        bound.passes({"quant.qat": {"end": "50%"}})


def test_weights_and_inputs_get_their_gradients():
    model, dense = tiny.model().eval(), tiny.model().eval()
    name = "bert.encoder.layer.1.output.dense"
    session = bound.session(model, {"quant.qat": {"include": [name]}}, steps=1)
    session.before_step(0)
    layer = model.get_submodule(name)
    taken = {}
    layer.register_full_backward_hook(lambda _, down, up: taken.update(down=down[0], up=up[0]))
    layer.register_forward_hook(lambda _, inputs, output: taken.update(inputs=inputs[0].detach()))
    model(**tiny.batch()).loss.backward()
    rounded = layer.input_transform("quant.qat")(taken["inputs"])
    expected = torch.einsum("bto,bti->oi", taken["up"], rounded)
    torch.testing.assert_close(layer.weight.grad, expected)
    torch.testing.assert_close(taken["down"], taken["up"] @ layer.effective().detach())
    torch.testing.assert_close(layer.bias.grad, taken["up"].sum((0, 1)))
    dense(**tiny.batch()).loss.backward()
    near = dense.get_submodule(name).weight.grad
    assert torch.nn.functional.cosine_similarity(near.flatten(), layer.weight.grad.flatten(), dim=0) > 0.9


def test_observers_move_in_the_window_until_they_freeze():
    model = tiny.model().train()
    options = {"observer": "moving", "start": 2, "freeze": 6, "decay": 0.5, "include": ["ffn"]}
    session = bound.session(model, {"quant.qat": options})
    name = session.passes[0].layers[0]
    observer = model.get_submodule(name).input_transform("quant.qat")
    seen = []
    for step in range(10):
        session.before_step(step)
        session.module(tiny.batch(seed=step))
        session.after_step()
        seen.append(float(observer.largest))
    assert seen[:2] == [0, 0]
    assert len(set(seen[2:6])) == 4
    assert len(set(seen[5:])) == 1
    before = bound.logits(model)  # in eval mode nothing is observed
    assert float(observer.largest) == seen[-1]
    session.finish()
    assert model.get_submodule(name).input_scale.item() == pytest.approx(seen[-1] / 127)
    torch.testing.assert_close(bound.logits(model), before, rtol=1e-4, atol=1e-6)


def test_an_observer_that_cannot_observe_is_refused():
    with pytest.raises(CookError, match="freezes at step 5, before anything was observed"):
        bound.session(tiny.model(), {"quant.qat": {"observer": "moving", "start": 5, "freeze": 5}})
    with pytest.raises(CookError, match="needs training") as caught:
        bound.session(tiny.model(), {"quant.qat": {"observer": "moving"}}, steps=0)
    assert "token" in caught.value.hint


def test_an_interrupted_run_goes_on_the_same():
    item = {"quant.qat": {"observer": "moving", "start": 2, "freeze": 8, "decay": 0.5}}
    model, other = tiny.model(), tiny.model()
    session, restored = bound.session(model, item), bound.session(other, item)
    model.train()
    for step in range(5):
        session.before_step(step)
        session.module(tiny.batch(seed=step))
    restored.load_state_dict(session.state_dict())
    # Before the next step too: the model is measured there.
    assert torch.equal(bound.logits(other), bound.logits(model))
    for bound_to in (session, restored):
        bound_to.model.train()
        torch.manual_seed(0)
        for step in range(5, 10):
            bound_to.before_step(step)
            bound_to.module(tiny.batch(seed=step))
    assert torch.equal(bound.logits(other), bound.logits(model))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pruned_first", [True, False])
def test_what_is_pruned_is_zero_in_the_integers(family, pruned_first):
    model = tiny.model(family)
    items = [{"prune.weights": {"sparsity": 0.6}}, {"quant.qat": {"start": "50%"}}]
    session = bound.session(model, *(items if pruned_first else reversed(items)))
    bound.train(session, family)
    prune = next(each for each in session.passes if each.name == "prune.weights")
    zero = {name.removesuffix(".weight"): model.get_parameter(name) == 0 for name in prune.parameters}
    session.finish()
    total = 0
    for name, layer in integers(model).items():
        masked = zero[name].t() if layer.conv1d else zero[name]
        values = unpack(layer.weight, 8, layer.in_features)
        assert (values[masked] == 0).all()
        total += int(masked.sum())
    assert total == round(0.6 * session.facts["prune.weights"]["of"])
    assert session.facts["prune.weights"]["zeros"] == total


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_soft_mask_folds_under_it(family):
    model = tiny.model(family).eval()
    session = bound.session(model, {"quant.qat": {"weights": "int4"}}, steps=0)
    name = session.passes[0].layers[0]
    mask = soften(model, name, "prune.soft")
    mask.keep.copy_(torch.rand(mask.keep.shape) > 0.5)
    both = bound.logits(model, family)
    fold(model, name, "prune.soft")
    torch.testing.assert_close(bound.logits(model, family), both)
    session.finish()
    layer = model.get_submodule(name)
    assert (unpack(layer.weight, 4, layer.in_features)[~mask.keep] == 0).all()
    torch.testing.assert_close(bound.logits(model, family), both, rtol=1e-4, atol=1e-6)


def test_two_passes_may_not_quantise_one_layer():
    items = [
        {"quant.qat": {"include": ["attention"]}},
        {"quant.qat": {"weights": "int4", "include": ["layers[0]"]}},
    ]
    with pytest.raises(CookError, match="is quantised by an earlier pass") as caught:
        bound.session(tiny.model(), *items)
    assert "exclude" in caught.value.hint
    assert "passes[1]" in caught.value.where
    items[1]["quant.qat"]["exclude"] = ["attention"]
    session = bound.session(model := tiny.model(), *items, steps=2)
    bound.train(session)
    session.finish()
    assert {layer.bits for name, layer in integers(model).items() if "attention" in name} == {8}
    assert {layer.bits for name, layer in integers(model).items() if "attention" not in name} == {4}


def test_the_plan_makes_integers_on_the_meta_device():
    (planned,) = bound.passes({"quant.qat": {"weights": "int4", "observer": "moving"}})
    with torch.device("meta"):
        model = tiny.model("gpt2")
    effect = planned.plan(Anatomy(model))
    assert [f"{edit.module}.weight" for edit in effect.edits] == effect.parameters
    assert "8 linear layers, weights int4, inputs int8 (moving)" in effect.note
    for edit in effect.edits:
        edit.check()
        assert edit.options["activation"] == {"bits": 8, "kind": "static"}
    assert (effect.edits[0].options["out"], effect.edits[0].options["in"]) == (48, 16)


def test_a_scale_that_nobody_observed_is_refused():
    model = tiny.model().eval()
    session = bound.session(model, {"quant.qat": {"observer": "moving"}}, steps=4)
    list(bound.steps(session, 4))  # in eval mode, as a loaded model is
    with pytest.raises(CookError, match="never ran in training mode") as caught:
        session.finish()
    assert "train()" in str(caught.value.hint)


def test_integers_load_where_a_model_keeps_layers_in_float32(tmp_path):
    model = families.made("t5")
    made = cook.apply(model, {"version": 1, "passes": ["quant.qat"]}).model
    made.save_pretrained(tmp_path)
    back = type(made).from_pretrained(tmp_path, dtype=torch.float16).eval()
    ours, theirs = dict(made.named_parameters()), dict(back.named_parameters())
    integers = [name for name, each in ours.items() if each.dtype == torch.int8]
    assert any(name.endswith(".wo.weight") for name in integers)
    assert all(torch.equal(theirs[name], ours[name]) for name in integers)
    with torch.no_grad():
        assert back(**families.batch("t5")).logits.isfinite().all()


def moved(parts: int) -> list[float]:
    """The averages after four updates of the same eight examples, cut into micro-batches."""
    model = tiny.model().train()
    session = bound.session(model, {"quant.qat": {"observer": "moving", "decay": 0.5, "start": 0}}, steps=4)
    observers = [each for each in session.model.modules() if isinstance(each, FakeQuantMoving)]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for step in range(4):
        session.before_step(step)
        batch = tiny.batch(size=8, seed=step)
        for part in range(parts):
            session.module({name: value[part::parts] for name, value in batch.items()})
        session.after_step()
    found = [float(each.largest) for each in observers]
    session.close()
    return found


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_change_no_scale(parts):
    assert moved(parts) == pytest.approx(moved(1), rel=1e-5)


def test_processes_change_no_scale(tmp_path):
    processes.two("tests.quant.processes", str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert first == pytest.approx(moved(1), rel=1e-5)


def test_a_step_that_was_skipped_leaves_no_trace():
    model = tiny.model().train()
    session = bound.session(model, {"quant.qat": {"observer": "moving", "start": 0}}, steps=4)
    observers = [each for each in model.modules() if isinstance(each, FakeQuantMoving)]
    session.before_step(0)
    session.module(tiny.batch())
    observers[0].pending = torch.tensor(torch.inf)  # no after_step: the scaler skipped the step
    session.before_step(1)
    session.module(tiny.batch())
    session.after_step()
    assert all(each.largest.isfinite() for each in observers)
    session.close()
