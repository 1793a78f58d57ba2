"""Layer by layer: the statistics are those of whole forwards through the model as it is by then."""

import re

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import cook
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.targets import within
from cook.model.calibration.layer_inputs import throughout, walk
from cook.model.calibration.layerwise import Layerwise
from cook.model.calibration.statistics import Gram
from cook.model.nn.linear import is_composite, is_linear
from tests.helpers import families, tiny
from tests.helpers.traces import hooks


def linears(model, layer):
    return within([name for name, module in model.named_modules() if is_linear(module)], [layer])


@torch.no_grad()
def slow_gram(model, name, batches):
    """One hook on one layer, the whole model, token by token; padding is told by the mask."""
    kept = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    was = model.training
    model.eval()
    for batch in batches:
        model(**batch)
    model.train(was)
    handle.remove()
    total, tokens = torch.zeros(kept[0].shape[-1], kept[0].shape[-1], dtype=torch.float64), 0
    for inputs, batch in zip(kept, batches, strict=True):
        for example in range(len(inputs)):
            for token in range(inputs.shape[1]):
                if "attention_mask" not in batch or batch["attention_mask"][example, token]:
                    vector = inputs[example, token].double()
                    total += torch.outer(vector, vector)
                    tokens += 1
    return total, tokens


def batches(family):
    return [tiny.batch(family, size=size, seed=size) for size in (3, 5)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_statistics_are_those_of_the_model_as_it_is_by_then(family):
    model = tiny.model(family, layers=3).train()
    way = Layerwise(Anatomy(model), iter(batches(family)))
    met = []
    for layer in way:
        met.append(layer)
        targets = linears(model, layer)
        found = way.statistics(targets, Gram)
        assert list(found) == [*found]
        for name in targets:
            expected, tokens = slow_gram(model, name, batches(family))
            assert found[name].tokens == tokens, name
            assert torch.allclose(found[name].value.double(), expected, rtol=1e-4, atol=1e-4), name
        with torch.no_grad():  # what comes after has to see this
            for name in targets:
                model.get_submodule(name).weight.mul_(-0.5)
    assert met == Anatomy(model).layers
    assert model.training
    assert hooks(model) == {}


def seq2seq(family, *, mask=False, seed=0):
    """Two batches: texts padded to the right, answers of other lengths than the texts."""
    made = []
    for number in (2 * seed, 2 * seed + 1):
        batch = families.batch(family, seed=number)
        labels = torch.randint(5, 23, (3, 4), generator=torch.Generator().manual_seed(number))
        labels[1, 3:] = labels[2, 2:] = -100
        batch["labels"] = labels
        if mask:
            batch["decoder_attention_mask"] = (labels != -100).long()
            del batch["labels"]
            batch["decoder_input_ids"] = labels.clamp_min(0)
        made.append(batch)
    return made


@torch.no_grad()
def slow_gram_of_pairs(model, name, batches):
    """The reference, where a module reads either the text's tokens or the answer's."""
    of_text = ".encoder." in f".{name}" or (
        any(part in name for part in ("EncDecAttention", "encoder_attn"))
        and name.rpartition(".")[2] in ("k", "v", "k_proj", "v_proj")
    )
    total, tokens, kept = 0, 0, []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    for batch in batches:
        model(**batch)
    handle.remove()
    for inputs, batch in zip(kept, batches, strict=True):
        if of_text:
            real = batch["attention_mask"].bool()
        elif "labels" in batch:
            real = batch["labels"] != -100
        else:
            real = batch["decoder_attention_mask"].bool()
        for vector in inputs[real].double():
            total, tokens = total + torch.outer(vector, vector), tokens + 1
    return total, tokens


@pytest.mark.parametrize("mask", [False, True], ids=["labels", "mask"])
@pytest.mark.parametrize("family", families.ENCODER_DECODER)
def test_a_decoder_meets_what_the_changed_encoder_gives(family, mask):
    torch.manual_seed(0)
    config = families.made(family).config
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    inputs = seq2seq(family, mask=mask)
    way, met = Layerwise(Anatomy(model), iter(inputs)), []
    for layer in way:
        met.append(layer)
        targets = linears(model, layer)
        found = way.statistics(targets, Gram)
        for name in targets:
            expected, tokens = slow_gram_of_pairs(model, name, inputs)
            assert found[name].tokens == tokens, name
            assert torch.allclose(found[name].value.double(), expected, rtol=1e-4, atol=1e-4), name
        for name in targets:
            model.get_submodule(name).weight.data.mul_(-0.5)
    assert met == Anatomy(model).layers
    assert len(met) == 4
    assert hooks(model) == {}


@pytest.mark.parametrize("family", families.ENCODER_DECODER)
def test_the_head_of_a_decoder_reads_the_answers_tokens(family):
    model = AutoModelForSeq2SeqLM.from_config(families.made(family).config).eval()
    inputs = seq2seq(family)
    found = throughout(model, inputs, ["lm_head"], lambda *given: Gram(*given))["lm_head"]
    expected, tokens = slow_gram_of_pairs(model, "lm_head", inputs)
    assert found.tokens == tokens
    assert torch.allclose(found.value.double(), expected, rtol=1e-4, atol=1e-4)


def test_what_gets_the_same_tensor_shares_a_statistic():
    model = tiny.model("llama")
    way = Layerwise(Anatomy(model), batches("llama"))
    layer = next(iter(way))
    found = way.statistics(linears(model, layer), Gram)
    queries, keys, values, output, gate, up, down = found.values()
    assert queries is keys is values
    assert gate is up
    assert len({id(each) for each in (queries, output, gate, down)}) == 4


def test_layers_that_get_different_masks_keep_them():
    torch.manual_seed(0)
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = Qwen2Config(
        **sizes,
        num_key_value_heads=2,
        vocab_size=23,
        sliding_window=2,
        layer_types=kinds,
        use_sliding_window=True,
    )
    model = Qwen2ForCausalLM(config).eval()
    inputs = [{name: value for name, value in each.items() if name != "labels"} for each in batches("llama")]
    way = Layerwise(Anatomy(model), inputs)
    for layer in way:
        name = f"{layer}.self_attn.o_proj"
        expected, _ = slow_gram(model, name, inputs)
        assert torch.allclose(
            way.statistics([name], Gram)[name].value.double(), expected, rtol=1e-4, atol=1e-5
        )


def test_a_cache_is_not_filled_and_the_config_is_as_before():
    model = LlamaForCausalLM(tiny.model("llama").config)
    assert model.config.use_cache
    inputs = [{name: value for name, value in each.items() if name != "labels"} for each in batches("llama")]
    way = Layerwise(Anatomy(model), inputs)
    assert model.config.use_cache
    first, second = iter(way), linears(model, "model.layers.0")
    next(first)
    once, twice = (way.statistics(second, Gram)[second[-1]].value for _ in range(2))
    assert torch.equal(once, twice)


def test_gradients_and_random_numbers_are_left_alone():
    model = tiny.model().train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    way = Layerwise(Anatomy(model), batches("bert"))
    for layer in way:
        way.statistics(linears(model, layer), Gram)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_is_refused_and_no_hook_is_left():
    model = tiny.model()
    with pytest.raises(CookError, match="no calibration examples"):
        Layerwise(Anatomy(model), [])
    square = [{**tiny.batch(), "attention_mask": torch.ones(4, 1, 7, 7).tril()}]
    with pytest.raises(CookError, match="attention_mask of 4 x 1 x 7 x 7"):
        Layerwise(Anatomy(model), square)
    way = Layerwise(Anatomy(model), batches("bert"))
    next(iter(way))
    with pytest.raises(CookError, match="is not run by its layer"):
        way.statistics(["bert.encoder.layer.1.output.dense"], Gram)
    fewer = tiny.model("llama")
    fewer.config.num_hidden_layers = 1  # the second layer is there and not run
    with pytest.raises(CookError, match="each once"):
        Layerwise(Anatomy(fewer), batches("llama"))
    assert hooks(fewer) == {}
    with pytest.raises(IndexError):  # an error of the model's own comes through
        Layerwise(Anatomy(tiny.model()), [{"input_ids": torch.tensor([[999]])}])
    assert hooks(model) == {}


def test_a_target_that_gets_other_tokens_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, hidden):
            return self.inner(hidden[:, :1])

    model = tiny.model("llama")
    model.model.layers[0].mlp = Odd()
    way = Layerwise(Anatomy(model), batches("llama"))
    next(iter(way))
    with pytest.raises(CookError, match="which are padding"):
        way.statistics(["model.layers.0.mlp.inner"], Gram)
    assert hooks(model) == {}


def test_layers_that_attend_in_two_ways_keep_their_own_masks():
    # Neither has a mask in a batch without padding and shorter than the window.
    settings = {**families.SETTINGS["qwen2"], "num_hidden_layers": 4}
    config = Qwen2Config(**settings, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    given = [{"input_ids": torch.randint(5, 23, (2, length))} for length in (6, 20)]
    names = [f"model.layers.{number}.self_attn.o_proj" for number in range(4)]
    expected = throughout(model, given, names, Gram)
    for found in walk(Anatomy(model), lambda: given, names, Gram):
        for name, statistic in found.items():
            torch.testing.assert_close(statistic.value, expected[name].value)


@pytest.mark.parametrize("family", families.ENCODER_DECODER)
@pytest.mark.parametrize("tokens", [4, 6])
def test_second_factors_get_the_tokens_of_the_first(family, tokens):
    # Those of cross attention read the text; texts and answers of one length cannot be told by it.
    model = AutoModelForSeq2SeqLM.from_config(families.made(family).config).eval()
    model = cook.apply(model, {"version": 1, "passes": [{"lowrank.linear": {"method": "svd"}}]}).model
    batch = {
        "input_ids": torch.randint(5, 23, (3, 6)),
        "attention_mask": (torch.arange(6) < torch.tensor([[6], [4], [6]])).long(),
        "labels": torch.randint(5, 23, (3, tokens)).masked_fill(torch.arange(tokens) >= 3, -100),
    }
    inside = [
        name for name, module in model.named_modules() if is_linear(module) and not is_composite(module)
    ]
    crossing = [
        name for name in inside if re.search(r"(EncDecAttention\.[kv]|encoder_attn\.[kv]_proj)\.", name)
    ]
    assert {name.rpartition(".")[2] for name in crossing} == {"up", "down"}
    for found in walk(Anatomy(model), lambda: [batch], inside, Gram):
        for name, statistic in found.items():
            of_text = name in crossing or ".encoder." in f".{name}"
            assert statistic.tokens == (16 if of_text else 9), name


def test_a_decoder_of_an_unknown_kind_reads_its_encoders_tokens():
    settings = families.SETTINGS["bert"]
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**settings), BertConfig(**settings, is_decoder=True, add_cross_attention=True)
    )
    model = EncoderDecoderModel(config=config).eval()
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    assert Anatomy(model).family is None  # and not one of its encoder alone
    layer = "decoder.bert.encoder.layer.0"
    names = [f"{layer}.crossattention.self.key", f"{layer}.crossattention.self.query"]
    batch = {
        "input_ids": torch.randint(5, 23, (2, 6)),
        "attention_mask": (torch.arange(6) < torch.tensor([[6], [4]])).long(),
        "labels": torch.randint(5, 23, (2, 4)),
    }
    found = throughout(model, [batch], names, Gram)
    assert [found[name].tokens for name in names] == [10, 8]
