"""Sentences cut out of documents, and what a model calls them."""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.sentences import labels, sentences
from tests.helpers import tiny


def test_documents_are_cut_at_their_sentences():
    found = sentences(
        ["A good film .  It was\nvery dull and very bad !", "A good film . it was not"], shortest=3
    )
    assert found == ["A good film .", "very dull and very bad !", "it was not"]


def test_labels_are_what_the_model_says(tmp_path):
    tiny.folder(tmp_path / "model")
    rows = ["a good film", "it was bad", "the plot was very poor"] * 100
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    with torch.inference_mode():
        single = [int(model(**tokenizer(row, return_tensors="pt")).logits.argmax()) for row in rows[:3]]
    assert labels(rows, str(tmp_path / "model")) == single * 100
