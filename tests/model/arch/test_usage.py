"""Which layers can be replaced: by what their forward computes, and by who reads their weight."""

from __future__ import annotations

import pytest
import torch
import transformers as T
from torch import nn
from torch.nn import functional

import cook
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.direct_reads import read_directly
from cook.model.arch.targets import left_out, select
from cook.model.arch.usage import read_elsewhere
from cook.model.nn.integer import IntLinear
from cook.model.nn.linear import is_linear
from tests.helpers import families, tiny

S = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
S |= {"vocab_size": 40, "pad_token_id": 0}
GROUPED = {**S, "num_key_value_heads": 2, "max_position_embeddings": 40}
TOKENS = {"input_ids": torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))}


class Scaled(nn.Linear):
    """Gives five times what a linear layer gives."""

    def forward(self, inputs):
        return 5 * functional.linear(inputs, self.weight, self.bias)


class Spelled(nn.Linear):
    """The forward of nn.Linear in other words."""

    def forward(self, inputs):
        return inputs @ self.weight.t() + self.bias


class Paired(nn.Linear):
    """Gives a pair, as routers do."""

    def forward(self, inputs):
        scores = super().forward(inputs)
        return scores, scores.argmax(-1)


@pytest.mark.parametrize(
    ("kind", "expected"), [(nn.Linear, True), (Spelled, True), (Scaled, False), (Paired, False)]
)
def test_a_subclass_is_linear_when_its_forward_is(kind, expected):
    assert is_linear(kind(4, 3)) is expected
    with torch.device("meta"):
        assert is_linear(kind(4, 3)) is expected


def mamba():
    return T.MambaForCausalLM(
        T.MambaConfig(**{k: S[k] for k in ("hidden_size", "vocab_size")}, num_hidden_layers=1, state_size=4)
    )


def rwkv():
    sizes = {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32, "vocab_size": 40}
    return T.RwkvForCausalLM(T.RwkvConfig(**sizes, num_hidden_layers=2, context_length=64))


def siglip():
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    text = {**vision, "vocab_size": 40}
    return T.SiglipForImageClassification(
        T.SiglipConfig(text_config=text, vision_config={**vision, "image_size": 16, "patch_size": 8})
    )


READ = {
    # A CPU calls all but the first of these; kernels on a GPU get the weights of all three.
    mamba: {f"backbone.layers.0.mixer.{name}" for name in ("dt_proj", "x_proj", "out_proj")},
    rwkv: {f"rwkv.blocks.{n}.{name}" for n in (0, 1) for name in ("attention.output", "feed_forward.value")},
    siglip: {"vision_model.head.attention.out_proj"},
}


@pytest.mark.parametrize("make", READ)
def test_weights_that_other_code_reads(make):
    model = make().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert read_elsewhere(model) == READ[make]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.device("meta"):
        bare = make()
    assert read_elsewhere(bare) == READ[make]


class Elsewhere(nn.Module):
    """Reads weights of its layers directly where some machines only come to."""

    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(2, 2), nn.Linear(2, 2)
        self.asked, self.inner = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))
        self._init_weights(self.read)

    def _init_weights(self, module):
        nn.init.zeros_(self.called.weight)

    def forward(self, inputs):
        if self.called.bias is not None and inputs.dtype == self.asked.weight.dtype:
            inputs = self.asked(self.called(inputs))
        return self.fast(inputs) if inputs.is_cuda else self.inner(self.read(inputs))

    def fast(self, inputs):
        return nn.functional.linear(inputs, self.read.weight)


def test_code_that_this_machine_does_not_come_to_is_read():
    model = nn.Sequential(Elsewhere(), Elsewhere())
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert read_directly(model, names) == {"0.read": "Elsewhere", "1.read": "Elsewhere"}


@pytest.mark.parametrize("family", families.ALL)
def test_the_code_of_known_families_reads_no_weight_of_a_layer(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"), device="meta")
    assert not read_directly(model, [name for name, module in model.named_modules() if is_linear(module)])


def test_a_model_of_sound_can_be_rounded():
    config = T.WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=40,
        num_mel_bins=4,
        max_source_positions=6,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = T.WhisperForConditionalGeneration(config).eval()
    done = cook.apply(model, {"version": 1, "passes": ["quant.qat"]}).model
    assert isinstance(done.model.encoder.layers[0].fc1, IntLinear)


def test_the_head_is_what_gives_logits_where_no_base_model_is_told_apart():
    model = T.T5ForConditionalGeneration(T.T5Config(**families.SETTINGS["t5"]))
    assert Anatomy(model).roots("head") == ["lm_head"]
    assert Anatomy(T.T5EncoderModel(model.config)).roots("head") == []


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_known_families_call_all_their_layers(family):
    assert read_elsewhere(tiny.model(family)) == set()


@pytest.mark.parametrize("make", READ)
def test_integers_of_what_can_be_replaced_run_and_the_rest_stays(make):
    model = make().eval()
    images = {"pixel_values": torch.randn(2, 3, 16, 16)}
    batch = images if make is siglip else TOKENS
    done = cook.apply(model, {"version": 1, "passes": ["quant.qat"]}).model.eval()
    done(**batch)
    for name in READ[make]:
        assert done.get_submodule(name).weight.is_floating_point()
        with pytest.raises(CookError, match="is read by other code than its own forward"):
            cook.apply(make(), {"version": 1, "passes": [{"quant.qat": {"include": [name]}}]})


@pytest.mark.parametrize(
    "make",
    [
        lambda: T.Llama4ForCausalLM(
            T.Llama4TextConfig(**GROUPED, head_dim=4, num_local_experts=2, intermediate_size_mlp=32)
        ),
        lambda: T.PhimoeForCausalLM(T.PhimoeConfig(**GROUPED, num_local_experts=2)),
    ],
)
@pytest.mark.parametrize("step", ["quant.qat", {"lowrank.linear": {"method": "svd", "parameters": 0.7}}])
def test_routers_are_left_out_and_the_plan_says_so(make, step):
    model = make().eval()
    anatomy = Anatomy(model)
    chosen = select(anatomy, None, replaced=True)
    assert not [name for name in chosen if "router" in name]
    assert "Router" in left_out(anatomy, None, None, chosen)
    missed = left_out(anatomy, None, None, chosen)
    done = cook.apply(model, {"version": 1, "passes": [step]})
    done.model(**TOKENS)
    assert done.report.passes[0].facts["note"].endswith(f"; {missed}")


def test_a_layer_with_a_forward_of_its_own_is_refused_by_name():
    model = tiny.model().eval()
    new = Scaled(16, 32)
    new.load_state_dict(model.bert.encoder.layer[0].intermediate.dense.state_dict())
    model.bert.encoder.layer[0].intermediate.dense = new
    name = "bert.encoder.layer.0.intermediate.dense"
    with pytest.raises(CookError, match=f"{name} is a Scaled, whose forward is not that of a linear layer"):
        cook.apply(model, {"version": 1, "passes": [{"quant.qat": {"include": [name]}}]})
    before = model(**tiny.batch()).logits
    after = cook.apply(model, {"version": 1, "passes": [{"quant.qat": {"activations": None}}]}).model
    assert after.get_submodule(name) is new
    torch.testing.assert_close(after(**tiny.batch()).logits, before, rtol=0.02, atol=0.02)


UNKNOWN = {
    "modernbert": lambda: T.ModernBertForSequenceClassification(
        T.ModernBertConfig(**S, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
    ),
    "falcon": lambda: T.FalconForSequenceClassification(
        T.FalconConfig(**{key: value for key, value in S.items() if key != "intermediate_size"})
    ),
    "mixtral": lambda: T.MixtralForCausalLM(
        T.MixtralConfig(**S, num_key_value_heads=2, num_local_experts=4, tie_word_embeddings=True)
    ),
    "gpt_oss": lambda: T.GptOssForCausalLM(
        T.GptOssConfig(**S, num_key_value_heads=2, head_dim=4, num_local_experts=3)
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_without_include_embeddings_and_heads_stay_and_experts_are_pruned(kind):
    model = UNKNOWN[kind]().eval()
    every = model.named_parameters(remove_duplicate=False)
    before = {name: (value == 0).sum() for name, value in every}
    done = cook.apply(model, {"version": 1, "passes": [{"prune.weights": {"sparsity": 0.5}}]})
    for name, module in done.model.named_modules():
        if isinstance(module, nn.Embedding) or name in ("lm_head", "score", "classifier"):
            assert int((module.weight == 0).sum()) == int(before[f"{name}.weight"]), name
    experts = [(n, p) for n, p in done.model.named_parameters() if "experts" in n and p.ndim == 3]
    assert bool(experts) == (kind in ("mixtral", "gpt_oss"))
    for name, value in experts:
        assert int((value == 0).sum()) > int(before[name])
    (row,) = done.report.passes
    pruned = [n for n, p in done.model.named_parameters() if int((p == 0).sum()) > int(before[n])]
    assert row.facts["of"] == sum(done.model.get_parameter(name).numel() for name in pruned)
    whole = sum(each.numel() for each in done.model.parameters())
    assert row.facts["share_of_model"] == pytest.approx(row.facts["of"] / whole)


def test_a_pattern_leaves_experts_out_and_the_plan_says_how_much_that_is():
    from cook.pipeline.inputs import make_passes
    from cook.recipe import load_recipe

    config = {"version": 1, "passes": [{"prune.weights": {"pattern": "2:4"}}]}
    with torch.device("meta"):
        model = UNKNOWN["mixtral"]()
    (step,) = make_passes(load_recipe(config, partial=True))
    note = step.plan(Anatomy(model)).note
    experts = sum(value.numel() for name, value in model.named_parameters() if ".mlp." in name)
    share = experts / sum(value.numel() for value in model.parameters())
    assert f"left out: MixtralExperts, MixtralTopKRouter with {share:.0%} of all parameters" in note


def test_the_word_embeddings_means_every_table_of_a_model():
    model = T.BartForConditionalGeneration(
        T.BartConfig(
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            vocab_size=40,
            max_position_embeddings=20,
        )
    )
    model.model.encoder.embed_tokens = nn.Embedding(40, 16)  # not tied
    found = Anatomy(model).roots("embeddings")
    assert "model.encoder.embed_tokens" in found
    reached = {id(each) for name in found for each in model.get_submodule(name).parameters()}
    tables = [each for each in model.modules() if isinstance(each, nn.Embedding)]
    assert {id(each.weight) for each in tables} <= reached
    falcon = UNKNOWN["falcon"]()
    assert Anatomy(falcon).roots("embeddings") == ["transformer.word_embeddings"]
