"""PEFT finds the factors of a model that was saved and loaded again, trains beside them and merges."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import cook
from cook.model.nn.lowrank import LowRank
from tests.helpers import bound, tiny

peft = pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[dev]'")


ONE = {"bert": "query", "gpt2": "c_attn", "llama": "q_proj"}


@pytest.mark.parametrize("family", sorted(ONE))
@pytest.mark.parametrize("by", ["factors", "names"])
def test_lora_acts_on_factors(family, by, tmp_path):
    recipe = {"version": 1, "passes": [{"lowrank.linear": {"method": "svd", "rank": 4}}]}
    cook.apply(tiny.model(family), recipe).model.save_pretrained(tmp_path / "low")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "low")
    before = bound.logits(model, family)
    targets = ["up", "down"] if by == "factors" else rf".*\.0\..*{ONE[family]}\.(up|down)"
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS")
    tuned = peft.get_peft_model(model, config)
    names = [name for name, each in tuned.named_modules() if isinstance(each, peft.tuners.lora.Linear)]
    assert names
    assert all(name.endswith((".up", ".down")) for name in names)
    factors = 2 * sum(isinstance(each, LowRank) for each in tuned.modules())
    assert len(names) == (factors if by == "factors" else 2)
    optimizer = torch.optim.AdamW([each for each in tuned.parameters() if each.requires_grad], lr=0.1)
    for step in range(3):
        tuned.train()(**tiny.batch(family, seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = bound.logits(tuned, family)
    assert not torch.allclose(learned, before, atol=1e-4)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(bound.logits(merged, family), learned, rtol=0, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(bound.logits(back, family), learned, rtol=0, atol=1e-4)
