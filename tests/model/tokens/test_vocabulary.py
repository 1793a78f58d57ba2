"""Rows that leave a model: which parts lose them, that ties hold and that outputs stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    ElectraForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
    RobertaForMaskedLM,
    T5ForConditionalGeneration,
)

from cook.errors import CookError
from cook.model.probe.equivalence import outputs
from cook.model.tokens.id_map import TokenIdMap, check_padding, named_ids, write
from cook.model.tokens.vocabulary import cut, find
from tests.helpers import tiny

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
SIDES = {"layers": 2, "attention_heads": 2, "ffn_dim": 24}
BART = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in SIDES.items()}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
MODELS = {
    BertForMaskedLM: ("bert", SIZES),
    BertForPreTraining: ("bert", SIZES),
    BertForSequenceClassification: ("bert", SIZES),
    RobertaForMaskedLM: ("roberta", {**SIZES, "pad_token_id": 1}),
    ElectraForMaskedLM: ("electra", {**SIZES, "embedding_size": 12}),
    GPT2LMHeadModel: ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4}),
    GPT2Model: ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4}),
    LlamaForCausalLM: ("llama", {**SIZES, "tie_word_embeddings": False}),
    T5ForConditionalGeneration: (
        "t5",
        {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
    ),
    BartForConditionalGeneration: ("bart", {"d_model": 16, **BART}),
}
ENTRIES = 37
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 30}
KEPT = torch.tensor([0, 1, 2, 3, 5, 8, 13, 21, 30, 31])


def model(cls):
    kind, sizes = MODELS[cls]
    torch.manual_seed(0)
    common = {"vocab_size": ENTRIES, "max_position_embeddings": 41, **SPECIAL}
    config = AutoConfig.for_model(kind, **{**common, **sizes})
    return cls(config).eval()


def numbers(made, kept=KEPT) -> TokenIdMap:
    return TokenIdMap(kept, ENTRIES, 1, labels=bool(find(made).heads))


every_model = pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)


@every_model
def test_outputs_on_kept_tokens_stay(cls, tmp_path):
    made = model(cls)
    found, new = find(made), numbers(made)
    batch = {"input_ids": KEPT[torch.randint(3, len(KEPT), (3, 7))]}
    if made.config.is_encoder_decoder:
        batch["decoder_input_ids"] = KEPT[torch.randint(3, len(KEPT), (3, 5))]
    if new.labels:
        batch["labels"] = batch.get("decoder_input_ids", batch["input_ids"]).clone()
        batch["labels"][0, 0] = -100
    if cls is BertForPreTraining:
        del batch["labels"]
    before = new.outputs(outputs(made, batch))
    tied = {frozenset(names) for names in groups(made).values()}
    cut(made, found, new)
    after = outputs(made, new(batch))
    assert {frozenset(names) for names in groups(made).values()} == tied
    assert not [name for name, each in made.state_dict().items() if ENTRIES in each.shape]
    assert made.config.vocab_size == len(KEPT)
    for name, value in before.items():
        if name != "loss":  # over fewer tokens, on purpose
            assert torch.allclose(value, after[name], atol=1e-6), name
    if "last_hidden_state" in before or cls is BertForSequenceClassification:
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    made.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert all(torch.equal(value, after[name]) for name, value in outputs(again, new(batch)).items())


def groups(made) -> dict[int, list[str]]:
    """The names of each parameter that has several."""
    found: dict[int, list[str]] = {}
    for name, each in made.named_parameters(remove_duplicate=False):
        found.setdefault(id(each), []).append(name)
    return {key: names for key, names in found.items() if len(names) > 1}


@every_model
def test_configs_say_the_new_numbers(cls):
    made = model(cls)
    assert named_ids(made) >= {2, 3}
    cut(made, find(made), numbers(made))
    assert (made.config.bos_token_id, made.config.eos_token_id) == (2, 3)
    assert getattr(made.config, "decoder_start_token_id", None) in (None, 8)
    if made.can_generate():
        assert made.generation_config.eos_token_id == 3


def test_a_batch_is_renumbered_and_what_is_gone_is_unknown():
    new = TokenIdMap(KEPT, ENTRIES, 1, labels=True)
    batch = {"input_ids": torch.tensor([[2, 13, 14]]), "labels": torch.tensor([[-100, 30, 4]])}
    assert new(batch)["input_ids"].tolist() == [[2, 6, 1]]
    assert new(batch)["labels"].tolist() == [[-100, 8, 1]]
    assert new.known(batch)["input_ids"].tolist() == [[2, 13, 1]]
    classes = TokenIdMap(KEPT, ENTRIES, 1)
    assert classes({"labels": torch.tensor([4])})["labels"].tolist() == [4]


def test_positions_that_count_from_the_padding_token_are_guarded():
    made = model(RobertaForMaskedLM)
    check_padding(made, numbers(made))
    with pytest.raises(CookError, match="counts positions from the padding token's number: 1 becomes 0"):
        check_padding(made, numbers(made, KEPT[1:]))


def test_what_is_not_understood_is_refused():
    with pytest.raises(CookError, match="no word embedding"):
        find(tiny.model("vit"))
    odd = model(GPT2Model)
    odd.mixture = nn.Parameter(torch.zeros(ENTRIES, 3))
    with pytest.raises(CookError, match="mixture has 37 entries, one for each token"):
        find(odd)
    odd = model(GPT2Model)
    odd.config.vocab_size = 40
    with pytest.raises(CookError, match="config's vocab_size is 40"):
        find(odd)
    odd = model(GPT2LMHeadModel)
    odd.lm_head = nn.AdaptiveLogSoftmaxWithLoss(16, ENTRIES, [10, 20])
    with pytest.raises(CookError, match="AdaptiveLogSoftmaxWithLoss"):
        find(odd)


def test_what_a_generation_config_says_of_tokens_is_renumbered():
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=12, bos_token_id=0, eos_token_id=0)
    )
    model.generation_config.sequence_bias = {(9, 4): 5.0, (7,): -1.0}
    model.generation_config.force_words_ids = [[9], [[4, 7]]]
    assert {4, 7, 9} <= named_ids(model)
    write(model, TokenIdMap(torch.tensor([0, 4, 7, 9, 11]), 12, 0))
    assert model.generation_config.sequence_bias == [[[3, 1], 5.0], [[2], -1.0]]
    assert model.generation_config.force_words_ids == [[3], [[1, 2]]]
    assert model.config.vocab_size == 5
