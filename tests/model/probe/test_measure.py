"""Parameters, zeros, bytes and multiply-accumulates, against counts made by hand."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from cook.model.nn.integer import IntLinear, unpack
from cook.model.nn.masks import Masks, soften
from cook.model.nn.transformed import transform
from cook.model.probe.measure import Tally, evaluating, latency, macs, operations, paired_ratio, tally
from cook.quant.fake import FakeQuantMoving, FakeQuantToken, FakeQuantWeight
from tests.helpers import bound, tiny
from tests.helpers.tiny import FAMILIES


def test_the_ratio_of_paired_times_shrugs_off_a_machine_that_slows_down():
    speeds = [1.0 + 0.2 * (turn % 7) for turn in range(15)]
    found = paired_ratio([3.0 * each for each in speeds], [2.0 * each for each in speeds])
    assert found == pytest.approx({"ratio": 1.5, "low": 1.5, "high": 1.5})
    ratios = [1.0 + turn / 100 for turn in range(15)]
    found = paired_ratio(ratios, [1.0] * 15)
    # The sign test of 15 pairs: the 4th smallest and the 4th largest.
    assert found == pytest.approx({"ratio": 1.07, "low": 1.03, "high": 1.11})
    assert paired_ratio([1.0, 2.0], [1.0, 1.0]) == {"ratio": 1.5, "low": 1.0, "high": 2.0}


def test_equal_operations_differ_in_values_alone():
    model, other = tiny.model(), tiny.model(seed=1)
    assert operations(model) == operations(other)
    assert operations(model) != operations(tiny.model(layers=1))
    assert operations(model) != operations(tiny.model().half())


def brute(model: nn.Module, dtype: torch.dtype | None = None) -> Tally:
    """Every stored tensor once, number by number."""
    parameters = zeros = size = 0
    packed = {}
    for name, module in model.named_modules():
        if isinstance(module, IntLinear):
            packed[f"{name}.weight"] = unpack(module.weight, module.bits, module.in_features)
            packed |= {f"{name}.scale": None, f"{name}.input_scale": None}
    seen = set()
    buffers = {name for name, _ in model.named_buffers()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        cast = dtype is not None and tensor.is_floating_point() and name not in packed
        size += tensor.numel() * ((torch.finfo(dtype).bits // 8) if cast else tensor.element_size())
        values = packed.get(name, tensor)
        if values is not None and name not in buffers:
            numbers = values.detach().flatten().tolist()
            parameters += len(numbers)
            zeros += sum(number == 0 for number in numbers)
    return Tally(parameters, zeros, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_float_models(family):
    model = tiny.model(family)
    assert tally(model) == brute(model)
    assert tally(model, torch.bfloat16) == brute(model, torch.bfloat16)
    assert tally(model.half()) == brute(model)


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "item",
    [
        {"prune.weights": {"sparsity": 0.4}},
        {"quant.qat": {"weights": "int5"}},
        {"quant.qat": {"weights": "int3", "observer": "moving"}},
        {"quant.qat": {"activations": None, "include": ["head", "ffn"]}},
    ],
    ids=["masked", "token", "moving", "weights"],
)
def test_a_model_is_counted_now_as_finish_leaves_it(family, item, dtype):
    model = tiny.model(family)
    session = bound.session(model, item, steps=2)
    bound.train(session, family)
    now = tally(model, dtype)
    session.finish()
    assert now == tally(model, dtype) == brute(model, dtype)
    assert now.zeros > 0


def test_what_is_not_enabled_yet_is_counted_as_it_is():
    model = tiny.model()
    before = tally(model)
    session = bound.session(model, {"quant.qat": {"start": "50%", "observer": "moving"}})
    assert tally(model) == before
    session.before_step(5)
    assert tally(model).bytes < before.bytes


def test_soft_masks_count_as_zeros():
    model = tiny.model("gpt2")
    before = tally(model)
    mask = soften(model, "transformer.h.0.mlp.c_fc", "a")
    mask.keep[:3] = False
    assert tally(model) == Tally(before.parameters, before.zeros + 3 * 16, before.bytes)


def tied() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=23, n_embd=16, n_layer=1, n_head=4, n_positions=32))


def test_tied_embeddings_count_once():
    model = tied()
    assert model.lm_head.weight is model.transformer.wte.weight
    counted = tally(model)
    assert counted == brute(model)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
    masks = Masks(model)
    keep = torch.rand(23, 16) > 0.5
    masks.set("a", "transformer.wte.weight", keep)
    assert tally(model).zeros == counted.zeros + int((~keep).sum())


def test_a_soft_mask_on_a_tied_head_holds_for_the_embedding():
    model = tied()
    before = tally(model)
    mask = soften(model, "lm_head", "a")
    mask.keep[5:] = False
    assert tally(model) == Tally(before.parameters, before.zeros + 18 * 16, before.bytes)


def test_an_integer_head_is_tied_no_more():
    model = tied()
    before = tally(model)
    head = transform(model, "lm_head")
    rounding = FakeQuantWeight(4)
    head.add_weight_transform("q", rounding)
    assert tally(model) == before
    rounding.enabled = True
    now = tally(model)
    model.lm_head = IntLinear.from_linear(head, 4)
    assert now == tally(model) == brute(model)
    assert now.parameters == before.parameters + 23 * 16
    assert now.bytes == before.bytes + 23 * 16 // 2 + 23 * 4


def test_input_scales_are_four_bytes_whatever_the_dtype():
    layer = nn.Sequential(nn.Linear(6, 4))
    stand = transform(layer, "0")
    weight, inputs = FakeQuantWeight(8), FakeQuantMoving(8)
    weight.enabled = inputs.enabled = True
    stand.add_weight_transform("q", weight)
    stand.add_input_transform("q", FakeQuantToken(8))
    assert tally(layer, torch.float16).bytes == 24 + 4 * 4 + 4 * 2
    stand.add_input_transform("q", inputs)
    assert tally(layer, torch.float16).bytes == 24 + 4 * 4 + 4 * 2 + 4


def test_on_the_meta_device_zeros_are_unknown():
    with torch.device("meta"):
        model = nn.Linear(3, 4)
    assert tally(model) == Tally(16, 0, 64)


def test_buffers_count_when_they_are_stored():
    model = nn.BatchNorm1d(3)
    model.register_buffer("hidden", torch.zeros(100), persistent=False)
    assert tally(model) == Tally(6, 3, 4 * (3 + 3 + 3 + 3) + 8)


WIDTH, FFN, LENGTH, LAYERS = 16, 32, 7, 2
ATTENTION = 2 * LENGTH * LENGTH * WIDTH
BY_HAND = {
    "bert": LAYERS * (LENGTH * (4 * WIDTH**2 + 2 * WIDTH * FFN) + ATTENTION) + WIDTH**2 + 2 * WIDTH,
    "gpt2": LAYERS * (LENGTH * (4 * WIDTH**2 + 2 * WIDTH * 4 * WIDTH) + ATTENTION) + LENGTH * 2 * WIDTH,
    # Half as many heads of keys and values; a gated FFN.
    "llama": LAYERS * (LENGTH * (3 * WIDTH**2 + 3 * WIDTH * FFN) + ATTENTION) + LENGTH * 2 * WIDTH,
    # Four patches of 4 x 4 pixels and a class token.
    "vit": 4 * 16 * WIDTH + LAYERS * (5 * (4 * WIDTH**2 + 2 * WIDTH * FFN) + 2 * 25 * WIDTH) + 2 * WIDTH,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_macs_by_hand(family):
    model = tiny.model(family).train()
    batch = tiny.batch(family, size=3, length=LENGTH)
    assert macs(model, batch) == 3 * BY_HAND[family]
    assert model.training


def test_zeros_cost_and_stand_ins_and_integers_cost_the_same():
    model, batch = tiny.model(), tiny.batch(length=LENGTH)
    session = bound.session(model, {"prune.weights": {"sparsity": 0.9}}, "quant.qat", steps=0)
    assert macs(model, batch) == 4 * BY_HAND["bert"]
    session.finish()
    assert macs(model, batch) == 4 * BY_HAND["bert"]


def test_evaluating_gives_each_module_its_mode_back():
    model = tiny.model().train()
    model.bert.encoder.eval()
    modes = [module.training for module in model.modules()]

    def broken() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError("inside")

    with pytest.raises(KeyError):
        broken()
    assert [module.training for module in model.modules()] == modes


def test_latency_has_an_order():
    small, large = tiny.model(layers=1).eval(), tiny.model(layers=12).eval()
    times = latency({"small": small, "large": large}, tiny.batch(), rounds=5)
    for summary in times.values():
        assert 0 < summary["low"] <= summary["median"] <= summary["high"]
    assert times["small"]["median"] < times["large"]["median"]
