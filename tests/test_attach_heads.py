"""Heads of every kind in `cook.attach`: learned from where that means something, else refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T

import cook
from cook.errors import CookError
from tests.helpers import tiny

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
BERT |= {"vocab_size": 40, "pad_token_id": 0}
SOUND = {
    **{key: value for key, value in BERT.items() if key not in ("vocab_size", "pad_token_id")},
    "vocab_size": 20,
    "conv_dim": [8, 8],
    "conv_stride": [4, 4],
    "conv_kernel": [4, 4],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}
IMAGE = {**{k: v for k, v in BERT.items() if k != "vocab_size"}, "image_size": 16, "patch_size": 8}
HIDDEN = {"distill.hidden": {"map": {"layers[1].output": "layers[1].output"}}}

REFUSED = {
    "pre-training": (lambda: T.BertForPreTraining(T.BertConfig(**BERT)), "and no `logits`"),
    "question answering": (lambda: T.BertForQuestionAnswering(T.BertConfig(**BERT)), "starts and ends"),
    "CTC": (lambda: T.Wav2Vec2ForCTC(T.Wav2Vec2Config(**SOUND)), "neither by example nor by token"),
    "no head": (lambda: T.BertModel(T.BertConfig(**BERT)), "and no `logits`"),
    "detection": (
        lambda: T.YolosForObjectDetection(T.YolosConfig(**{**IMAGE, "image_size": [16, 16]})),
        "neither by example nor by token",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_heads_without_one_distribution_are_refused_when_attached(name):
    make, words = REFUSED[name]
    with pytest.raises(CookError, match=words):
        cook.attach(make(), {"version": 1, "passes": ["distill.logits"]}, total_steps=2, teacher=make())


def test_a_teacher_without_logits_is_refused_when_attached():
    student, teacher = T.BertForMaskedLM(T.BertConfig(**BERT)), T.BertForPreTraining(T.BertConfig(**BERT))
    with pytest.raises(CookError, match="the teacher, a BertForPreTraining"):
        cook.attach(student, {"version": 1, "passes": ["distill.logits"]}, total_steps=2, teacher=teacher)


def terms(make: Any, step: Any, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    config = {"version": 1, "passes": [step]}
    torch.manual_seed(0)
    with cook.attach(make().eval(), config, total_steps=2, teacher=make()) as session:
        session.before_step(0)
        return {name: float(value.detach()) for name, value in session.module(batch).items()}


def test_multiple_choice_learns_without_the_padding_of_its_choices():
    def make():
        return T.BertForMultipleChoice(T.BertConfig(**BERT))

    tokens = torch.randint(5, 40, (1, 2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, 1, 4:] = 0
    batch = {"attention_mask": mask, "labels": torch.tensor([0])}
    first = terms(make, HIDDEN, {**batch, "input_ids": tokens})
    assert first["hidden"] > 0
    assert terms(make, "distill.logits", {**batch, "input_ids": tokens})["logits"] > 0
    garbage = tokens.clone()
    garbage[0, 1, 4:] = 6
    assert terms(make, HIDDEN, {**batch, "input_ids": garbage}) == pytest.approx(first, rel=1e-5)


def test_sound_learns_inside_and_refuses_a_mask_of_samples():
    def make():
        return T.Wav2Vec2ForSequenceClassification(T.Wav2Vec2Config(**SOUND))

    name = "wav2vec2.encoder.layers.1[out]"
    step = {"distill.hidden": {"map": {name: name}}}
    batch = {"input_values": torch.randn(2, 400), "labels": torch.tensor([0, 1])}
    assert terms(make, step, batch)["hidden"] > 0
    with pytest.raises(CookError, match=r"which tokens of .* are padding is not known"):
        terms(make, step, {**batch, "attention_mask": torch.ones(2, 400, dtype=torch.long)})


def test_layers_that_the_model_itself_drops_stay_while_they_are_learned_from():
    sizes = {"d_model": 16, "vocab_size": 40, "pad_token_id": 0, "max_position_embeddings": 40}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 2, f"{part}_attention_heads": 4, f"{part}_ffn_dim": 32}
        sizes |= {f"{part}_layerdrop": 0.5}
    student = T.M2M100ForConditionalGeneration(T.M2M100Config(**sizes)).train()
    tokens = torch.randint(5, 40, (2, 7))
    config = {"version": 1, "passes": [HIDDEN]}
    with pytest.warns(UserWarning, match=r"encoder\.layerdrop is 0\.5"):
        session = cook.attach(student, config, total_steps=20, teacher="self")
    for step in range(20):
        torch.manual_seed(step)
        session.before_step(step)
        session.module({"input_ids": tokens, "labels": tokens})
    session.close()
    assert student.model.encoder.layerdrop == student.model.decoder.layerdrop == 0.5
    plain = cook.attach(student, {"version": 1, "passes": ["distill.logits"]}, total_steps=2, teacher="self")
    assert student.model.encoder.layerdrop == 0.5, "logits are there whatever layers are left out"
    plain.close()


def test_a_rate_that_the_model_reads_from_its_config_is_set_aside_too():
    def make():
        return T.Wav2Vec2ForSequenceClassification(T.Wav2Vec2Config(**SOUND | {"layerdrop": 0.5})).train()

    name = "wav2vec2.encoder.layers.1[out]"
    config = {"version": 1, "passes": [{"distill.hidden": {"map": {name: name}}}]}
    student = make()
    with pytest.warns(UserWarning, match=r"config\.layerdrop is 0\.5") as seen:
        session = cook.attach(student, config, total_steps=20, teacher=make())
    assert len([each for each in seen if "layerdrop" in str(each.message)]) == 1, "modules share the config"
    for step in range(20):
        torch.manual_seed(step)
        session.before_step(step)
        session.module({"input_values": torch.randn(2, 400), "labels": torch.tensor([0, 1])})
        session.after_step()
    session.finish()
    assert student.config.layerdrop == 0.5


def test_several_labels_that_only_the_first_batch_shows():
    batch = {**tiny.batch(), "labels": torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])}
    with cook.attach(
        tiny.model(), {"version": 1, "passes": ["distill.logits"]}, total_steps=2, teacher=tiny.model(seed=1)
    ) as session:
        session.before_step(0)
        with pytest.raises(CookError, match="multi label classification are no distribution"):
            session.module(batch)


def test_a_batch_without_labels():
    with cook.attach(
        tiny.model(), {"version": 1, "passes": ["distill.logits"]}, total_steps=2, teacher="self"
    ) as session:
        session.before_step(0)
        with pytest.raises(CookError, match="returned no loss"):
            session.module({name: value for name, value in tiny.batch().items() if name != "labels"})
