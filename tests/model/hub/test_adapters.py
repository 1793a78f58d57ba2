"""Models with adapters of PEFT inside: refused with the way to merge them, which works."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

import cook
from cook.errors import CookError
from cook.model.hub import load
from tests.helpers import tiny

LORA = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
RECIPE = {"version": 1, "passes": [{"prune.weights": {"sparsity": 0.5}}]}


def test_injected_adapters_are_refused_and_can_be_merged(tmp_path):
    model = tiny.model().eval()
    model.save_pretrained(tmp_path / "base")
    model.add_adapter(LORA)
    model.eval()
    for door in (cook.apply, lambda *given: cook.attach(*given, total_steps=1)):
        with pytest.raises(CookError, match=r"has adapters injected.*\n.*merge_and_unload"):
            door(model, RECIPE)
    batch = tiny.batch()
    with torch.no_grad():
        expected = model(**batch).logits
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, expected)
    cook.apply(merged, RECIPE).model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_peft_model_is_refused():
    with pytest.raises(CookError, match=r"found a PeftModel.*\n.*merge_and_unload"):
        cook.apply(get_peft_model(tiny.model(), LORA), RECIPE)


def test_a_folder_that_loads_an_adapter_is_refused(tmp_path):
    model = tiny.model()
    model.save_pretrained(tmp_path)
    model.add_adapter(LORA)
    model.save_pretrained(tmp_path)  # beside the weights, where from_pretrained finds and injects it

    def error(key: str, message: str, hint: str | None) -> CookError:
        return CookError(message, where=key, hint=hint)

    with pytest.raises(CookError, match="has adapters injected"):
        load.load({"path": str(tmp_path)}, auto_class="AutoModelForSequenceClassification", error=error)
