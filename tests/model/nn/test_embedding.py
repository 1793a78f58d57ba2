"""Embeddings of two factors against whole ones that hold their product: outputs, gradients, ties, folders."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from cook.errors import CookError
from cook.lowrank.table import factors
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.hub import folder
from cook.model.hub.quantizer import attach_quantizer, blueprint_of, float_module
from cook.model.hub.verify import Case, verify_all
from cook.model.nn import embedding, surgery
from cook.model.nn.embedding import FactorisedEmbedding, FactorisedHead, TransposedLinear
from cook.model.nn.integer import IntLinear
from tests.helpers import families, tiny

RANK = 4
HEADED = {
    "BertForMaskedLM": {},
    "BertForPreTraining": {},
    "RobertaForMaskedLM": {},
    "DistilBertForMaskedLM": {},
    "ElectraForMaskedLM": {},
    "AlbertForMaskedLM": {},
    "DebertaV2ForMaskedLM": {},
    "GPT2LMHeadModel": {},
    "GPTNeoXForCausalLM": {},
    "OPTForCausalLM": {"word_embed_proj_dim": 8},
    "LlamaForCausalLM": {"tie_word_embeddings": True},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True},
    "Qwen3ForCausalLM": {},
    "GemmaForCausalLM": {},
    "Phi3ForCausalLM": {},
    "T5ForConditionalGeneration": {},
    "T5EncoderModel": {},
    "BartForConditionalGeneration": {"scale_embedding": True},
    "BartForSequenceClassification": {},
}
"""Of every family a model with an output head, or with embeddings that several parts share."""
ATTENDED = {"DebertaV2ForMaskedLM": "eager"}


def made(name: str, **config: Any) -> Any:
    """A tiny model in eval mode with weights far from nothing."""
    kind = getattr(transformers, name)
    family = kind.config_class.model_type
    given = {**families.SETTINGS[family], "initializer_range": 0.3, **HEADED.get(name, {}), **config}
    torch.manual_seed(0)
    model = kind(AutoConfig.for_model(family, **given)).eval()
    with torch.no_grad():  # a bias that is all zeros would hide whether it is there
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def inputs(model: Any) -> dict[str, Tensor]:
    batch = {k: v for k, v in families.batch(model.config.model_type).items() if k != "labels"}
    more = type(model).__name__.endswith("ConditionalGeneration")
    return {**batch, "decoder_input_ids": batch["input_ids"].flip(1)} if more else batch


def cut(model: Any, rank: int = RANK) -> str:
    """Factorise a model, as a pass does; the name of its embedding."""
    name = embedding.find(model)
    found = factors(model.get_submodule(name).weight.detach(), rank)
    edit = Edit("factorise", name, {"rank": rank})
    Blueprint(edits=[edit]).apply(model)
    embedding.fill(model, name, found.table, found.factor)
    attach_quantizer(model, Blueprint(edits=[*blueprint_of(model).edits, edit]))
    return name


def first(model: Any, batch: dict[str, Tensor]) -> Tensor:
    found = model(**batch)
    return found.logits if hasattr(found, "logits") else found[0]


def shared(model: nn.Module) -> set[frozenset[str]]:
    """Which names stand for one parameter."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(each) for each in names.values()}


@pytest.mark.parametrize("name", HEADED)
def test_outputs_and_gradients_are_those_of_the_product(name):
    model, whole = made(name).double(), made(name).double()
    place = cut(model)
    embedding, plain = model.get_submodule(place), whole.get_submodule(place)
    with torch.no_grad():
        plain.weight.copy_(embedding.table.weight @ embedding.factor.weight.T)
    batch = inputs(model)
    expected = first(whole, batch)
    torch.testing.assert_close(first(model, batch), expected, rtol=1e-5, atol=1e-5)
    # What the whole embedding, and a head tied to it, hands back goes to both factors.
    table, factor = (
        each.weight.detach().clone().requires_grad_() for each in (embedding.table, embedding.factor)
    )
    names = [key for key, each in whole.named_parameters(remove_duplicate=False) if each is plain.weight]
    product = table @ factor.T
    found = functional_call(whole, {**dict.fromkeys(names, product)}, (), batch, tie_weights=False)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7))
    ((found.logits if hasattr(found, "logits") else found[0]) * direction).sum().backward()
    (first(model, batch) * direction).sum().backward()
    padding = plain.padding_idx
    own = embedding.table.weight.grad
    if padding is not None and not any(isinstance(each, FactorisedHead) for each in model.modules()):
        assert not own[padding].any()
    if padding is None or not (batch["input_ids"] == padding).any():
        torch.testing.assert_close(own, table.grad, rtol=1e-5, atol=1e-5)
    else:
        rest = torch.arange(len(own)) != padding
        torch.testing.assert_close(own[rest], table.grad[rest], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedding.factor.weight.grad, factor.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HEADED)
def test_ties_stay_and_survive_a_folder(name, tmp_path):
    model, whole = made(name), made(name)
    place = cut(model)
    embedding = model.get_submodule(place)
    tied = next(each for each in shared(whole) if f"{place}.weight" in each)
    inner = {each.removesuffix(".weight") for each in tied}
    assert frozenset(f"{each}.table.weight" for each in inner) in shared(model)
    assert frozenset(f"{each}.factor.weight" for each in inner) in shared(model)
    size = sum(each.numel() for each in whole.parameters()) - sum(each.numel() for each in model.parameters())
    assert size == whole.get_submodule(place).weight.numel() - RANK * (23 + embedding.embedding_dim)
    batch = inputs(model)
    expected = first(model, batch)
    model.tie_weights()
    assert torch.equal(first(model, batch), expected)
    for path, shard in ((tmp_path / "one", "5GB"), (tmp_path / "several", "2KB")):
        folder.save(model, path, shard_size=shard)
        again = type(model).from_pretrained(path).eval()
        assert torch.equal(first(again, batch), expected)
        assert shared(again) == shared(model)
        model = again
    files = list((tmp_path / "several").glob("*.safetensors"))
    assert len(files) > 1
    assert sum(f"{place}.table.weight" in load_file(file) for file in files) == 1
    assert sum(key.endswith("factor.weight") for file in files for key in load_file(file)) == 1
    again.tie_weights()
    assert shared(again) == shared(model)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "LlamaForCausalLM", "BartForConditionalGeneration"])
def test_it_loads_in_a_fresh_process_and_not_without_cook(name, tmp_path, clean_processes):
    model = made(name)
    cut(model)
    model = model.to(torch.bfloat16) if name.startswith("Llama") else model
    folder.save(model, tmp_path / "model")
    batch = inputs(model)
    auto = {"B": "AutoModelForMaskedLM", "L": "AutoModelForCausalLM"}.get(name[0], "")
    auto = "AutoModelForSeq2SeqLM" if name.startswith("Bart") else auto
    (told,) = verify_all([Case(tmp_path / "model", batch, {"logits": first(model, batch).detach()}, auto)])
    assert told["exact"]
    assert not told["plain"]
    assert "mismatch" in clean_processes.refusal(auto, tmp_path / "model")


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_generating_with_a_cache_gives_the_same_after_loading(name, tmp_path):
    model = made(name)
    cut(model)
    folder.save(model, tmp_path / "model")
    ids = families.batch(model.config.model_type)["input_ids"][:1]
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    told = model.generate(ids, **how)
    again = type(model).from_pretrained(tmp_path / "model").eval()
    assert torch.equal(again.generate(ids, **how), told)
    assert torch.equal(model.generate(ids, **how, use_cache=False), told)


def test_a_base_model_and_other_heads_take_it_from_a_headed_folder(tmp_path):
    model = made("BertForMaskedLM")
    cut(model)
    folder.save(model, tmp_path / "model")
    batch = inputs(model)
    base = AutoModel.from_pretrained(tmp_path / "model", add_pooling_layer=False).eval()
    assert torch.equal(base(**batch)[0], model.bert(**batch)[0])
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(other.bert(**batch)[0], base(**batch)[0])
    folder.save(other, tmp_path / "other")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "other").eval()
    assert torch.equal(again(**batch).logits, other(**batch).logits)
    # The head comes with a folder of the base model: its matrix is the embedding's.
    folder.save(base, tmp_path / "base")
    head = transformers.BertForMaskedLM.from_pretrained(tmp_path / "base").eval()
    assert head.cls.predictions.decoder.table.weight is head.bert.embeddings.word_embeddings.table.weight
    assert torch.equal(head.bert(**batch)[0], base(**batch)[0])


def test_a_head_that_is_not_tied_stays_whole(tmp_path):
    model = made("LlamaForCausalLM", tie_word_embeddings=False)
    before = model.lm_head.weight
    cut(model)
    assert model.lm_head.weight is before
    folder.save(model, tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model").eval()
    assert shared(again) == shared(model)
    assert torch.equal(first(again, inputs(model)), first(model, inputs(model)))


@pytest.mark.parametrize("gone", ["table", "factor"])
def test_a_folder_without_a_factor_is_refused(gone, tmp_path):
    model = made("GPT2LMHeadModel")
    cut(model)
    folder.save(model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    del state[f"transformer.wte.{gone}.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(CookError, match=f"holds no transformer.wte.{gone}.weight"):
        type(model).from_pretrained(tmp_path / "model")


def test_it_says_what_an_embedding_says():
    model, whole = made("GPT2LMHeadModel"), made("GPT2LMHeadModel")
    cut(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, FactorisedEmbedding)
    assert isinstance(head, FactorisedHead)
    assert (embedding.num_embeddings, embedding.embedding_dim) == (23, 16)
    assert (head.in_features, head.out_features, head.bias) == (16, 23, None)
    assert embedding.weight.shape == head.weight.shape == whole.lm_head.weight.shape
    assert torch.allclose(embedding.weight, head.weight)
    ids = torch.arange(23)
    assert torch.allclose(embedding(ids), embedding.weight, atol=1e-6)
    states = torch.randn(2, 16)
    assert torch.allclose(head(states), states @ head.weight.T, atol=1e-5)
    with pytest.raises(KeyError, match="weight"):
        embedding.weight = nn.Parameter(torch.zeros(23, 16))
    with pytest.raises(TypeError, match=r"FactorisedEmbedding'>, which is not an instance of"):
        model.resize_token_embeddings(30)


def test_a_head_of_integers_gets_its_factor_back():
    factor = TransposedLinear(nn.Parameter(torch.randn(6, 4)))
    back = float_module(IntLinear.from_linear(factor, 8))
    assert isinstance(back, TransposedLinear)
    assert torch.allclose(back.weight, factor.weight, atol=0.02)
    states = torch.randn(3, 6)
    assert torch.allclose(factor(states), states @ factor.weight)


@pytest.mark.parametrize(
    ("module", "rank", "words"),
    [
        ("bert.embeddings.word_embeddings", 16, "not below"),
        ("bert.embeddings.word_embeddings", 2**20, "not below"),
        ("bert.pooler.dense", 16, "not below"),
        ("bert.embeddings.LayerNorm", 2, "a LayerNorm, which cook cannot factorise"),
        ("bert.encoder", 2, "cannot factorise"),
        ("bert.embeddings.word_embedding", 2, "no module"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(module, rank, words):
    model = tiny.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CookError, match=words):
        Blueprint(edits=[Edit("factorise", module, {"rank": rank})]).apply(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("options", [{}, {"rank": 0}, {"rank": True}, {"rank": "4"}, {"rank": 4, "more": 1}])
def test_options_of_strangers_are_checked(options):
    edit = {"op": "factorise", "module": "bert.embeddings.word_embeddings", "options": options}
    value = {"version": 1, "edits": [json.loads(json.dumps(edit))], "inner": None, "lock": None}
    with pytest.raises(CookError, match=r"rank|unknown key"):
        Blueprint.from_dict(value)


def test_a_second_edit_is_refused():
    model = made("GPT2LMHeadModel")
    place = cut(model)
    with pytest.raises(CookError, match="which cook cannot factorise"):
        Blueprint(edits=[Edit("factorise", place, {"rank": 2})]).apply(model)


class Normed(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(ids))


@pytest.mark.parametrize("other", [Normed(23, 16), nn.Embedding(23, 16, max_norm=1.0)])
def test_an_embedding_that_does_more_is_refused(other):
    model = tiny.model()
    model.set_input_embeddings(other)
    with pytest.raises(CookError, match="which cook cannot factorise"):
        embedding.find(model)
    with pytest.raises(CookError, match="which cook cannot factorise"):
        embedding.factorise(model, "bert.embeddings.word_embeddings", 2)


def test_ties_that_the_config_does_not_know_are_refused():
    model = made("GPT2LMHeadModel")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(CookError, match=r"lm_head should share the matrix of transformer.wte"):
        embedding.find(model)
    model = made("LlamaForCausalLM", tie_word_embeddings=False)
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(CookError, match=r"lm_head shares the matrix of model.embed_tokens"):
        embedding.find(model)


def test_a_model_without_a_table_of_its_own_is_refused():
    with pytest.raises(CookError, match="no word embedding"):
        embedding.find(tiny.model("vit"))
    with pytest.raises(CookError, match="word embeddings of their own"):
        embedding.find(made("BartForConditionalGeneration", tie_word_embeddings=False))
    model = made("BertForMaskedLM")
    cut(model)
    with pytest.raises(CookError, match="two factors already, of rank 4"):
        embedding.find(model)


def test_modules_are_named_by_what_they_hold():
    model = made("GPT2LMHeadModel")
    assert embedding.widening(model, "transformer.wte") == "transformer.wte"
    cut(model)
    assert embedding.widening(model, "transformer.wte") == "transformer.wte.factor"
    assert embedding.widening(model, "nowhere") == "nowhere"
    assert embedding.within(model.lm_head) is surgery.get(model, "lm_head.table")
    assert embedding.within(None) is None
