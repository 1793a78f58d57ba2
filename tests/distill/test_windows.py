"""How far tokens attend: by layer and by model, against the attention that eager models give."""

from __future__ import annotations

import pytest
import torch
import transformers as T

from cook.model.arch.anatomy import Anatomy
from tests.helpers import bound, tiny

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 23,
    "pad_token_id": 0,
    "max_position_embeddings": 32,
    "attn_implementation": "eager",
}
LABELS = {"num_labels": 2}


def qwen2(layers: list[str]):
    config = T.Qwen2Config(**SIZES, **LABELS, use_sliding_window=True, sliding_window=3, layer_types=layers)
    return T.Qwen2ForSequenceClassification(config).eval()


def late(first: int):
    config = T.Qwen2Config(
        **SIZES, **LABELS, use_sliding_window=True, sliding_window=3, max_window_layers=first
    )
    return T.Qwen2ForSequenceClassification(config).eval()


MODELS = {
    "alternating": lambda: qwen2(["sliding_attention", "full_attention", "sliding_attention"]),
    "from the third layer on": lambda: late(2),
    "every layer": lambda: late(0),
    "no layer": lambda: T.LlamaForSequenceClassification(T.LlamaConfig(**SIZES, **LABELS)).eval(),
    "mistral": lambda: T.MistralForSequenceClassification(
        T.MistralConfig(**SIZES, **LABELS, sliding_window=2)
    ).eval(),
    "gemma2": lambda: T.Gemma2ForSequenceClassification(
        T.Gemma2Config(**SIZES, **LABELS, head_dim=4, sliding_window=3)
    ).eval(),
    "gemma3": lambda: T.Gemma3TextForSequenceClassification(
        T.Gemma3TextConfig(**SIZES, **LABELS, head_dim=4, sliding_window=2, sliding_window_pattern=2)
    ).eval(),
    "qwen3": lambda: T.Qwen3ForSequenceClassification(
        T.Qwen3Config(
            **SIZES, **LABELS, head_dim=4, use_sliding_window=True, sliding_window=2, max_window_layers=1
        )
    ).eval(),
}


def read(model, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Which positions have any attention in each layer, [tokens, tokens]."""
    with torch.no_grad():
        attentions = model(input_ids=tokens, output_attentions=True).attentions
    return [(each[0] > 0).any(0) for each in attentions]


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_attends_as_far_as_its_model_says(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    tokens = torch.randint(5, 23, (1, 7), generator=torch.Generator().manual_seed(0))
    anatomy = Anatomy(model)
    if anatomy.family is None:
        pytest.skip("cook knows no layers of this family")
    for number, expected in enumerate(read(model, tokens)):
        found = anatomy.attends(f"layers[{number}].attention.scores", 7)
        assert torch.equal(found, expected), number
        assert torch.equal(anatomy.attends(f"{anatomy.layers[number]}[out]", 7), expected)


def test_a_pair_is_compared_where_both_models_attend():
    torch.manual_seed(0)
    student, teacher = MODELS["alternating"](), MODELS["no layer"]()
    options = {"parts": ["attention"], "layers": {"0": 1, "1": 2}}
    session = bound.session(student, {"distill.tinybert": options}, teacher=teacher)
    batch = {**tiny.batch("llama"), "labels": torch.tensor([0, 1, 1, 0])}
    terms = session.module(batch)
    own, other = (
        torch.stack([session.tensor(f"layers[{n}].attention.scores") for n in (0, 1)]).detach(),
        torch.stack([session.teachers[0].tensor(f"layers[{n}].attention.scores") for n in (1, 2)]),
    )
    losses = []
    for layer, reach in enumerate((3, 7)):
        examples = []
        for row in range(4):
            length = int(batch["attention_mask"][row].sum())
            pairs = [(q, k) for q in range(length) for k in range(length) if 0 <= q - k < reach]
            squares = [
                float((own[layer, row, head, q, k] - other[layer, row, head, q, k]) ** 2)
                for head in range(4)
                for q, k in pairs
            ]
            examples.append(sum(squares) / len(squares))
        losses.append(sum(examples) / 4)
    assert float(terms["attention scores"]) == pytest.approx(sum(losses) / 2, rel=1e-4)
    session.close()


def test_the_teachers_window_counts_where_the_student_has_none():
    student, teacher = MODELS["no layer"](), MODELS["mistral"]()
    session = bound.session(student, {"distill.minilm": {"version": 1}}, teacher=teacher)
    (step,) = session.passes
    session.module({**tiny.batch("llama"), "labels": torch.tensor([0, 1, 1, 0])})
    (pair, *_) = step.watched
    scores = session.tensor(pair.student)
    found = step.attended(session, pair, scores)
    near = torch.ones(7, 7).tril().triu(-1).bool()
    assert not (found & ~near).any()
    assert torch.equal(found[0], near)
    session.close()
