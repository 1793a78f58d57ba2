"""The two sides of `benchmarks/oneshot.py beside`, each to be run by an interpreter that has its library.

python oneshot_sides.py make FOLDER
python oneshot_sides.py cook|llm-compressor FOLDER wanda|sparsegpt MASKS

The first writes a Llama of random weights and examples of random tokens; the others prune half of every
layer's weights, write which are kept, and print seconds, those of the processor, the peak of resident
memory, and by how much that is more than with the model just loaded.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROWS, LENGTH, BATCH, VOCABULARY = 32, 256, 8, 8192


def resident(what: str) -> int:
    """Bytes in memory: `VmRSS` now, `VmHWM` at most since `forget`."""
    told = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert told
    return int(told[1]) * 1024


def forget() -> None:
    """Let Linux measure the peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def make(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
    )
    model = LlamaForCausalLM(config)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    model.save_pretrained(folder / "model")
    # Nobody reads with it, but llm-compressor asks for one.
    words = models.WordLevel({"<unk>": 0}, unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="<unk>").save_pretrained(
        folder / "model"
    )
    torch.save(torch.randint(3, VOCABULARY, (ROWS, LENGTH)), folder / "examples.pt")


def with_cook(model: Any, examples: torch.Tensor, method: str) -> None:
    import cook

    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in examples.split(BATCH)]
    recipe = {"version": 1, "passes": [{"prune.weights": {"method": method, "sparsity": 0.5, "rows": ROWS}}]}
    cook.apply(model, recipe, calibration=batches)


def with_llm_compressor(model: Any, examples: torch.Tensor, method: str) -> None:
    from datasets import Dataset

    modifiers: Any = importlib.import_module("llmcompressor.modifiers.pruning")
    names = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}
    kind = getattr(modifiers, names[method])
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in examples.tolist()]
    importlib.import_module("llmcompressor").oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=kind(sparsity=0.5, targets=["Linear"], ignore=["re:.*lm_head"]),
        num_calibration_samples=ROWS,
        max_seq_length=LENGTH,
        batch_size=BATCH,
        shuffle_calibration_samples=False,
    )


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    if side == "make":
        make(folder)
        return
    method, masks = sys.argv[3:]
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    examples = torch.load(folder / "examples.pt")
    prune = {"cook": with_cook, "llm-compressor": with_llm_compressor}[side]
    # What is imported once is not what pruning costs.
    importlib.import_module({"cook": "cook.api", "llm-compressor": "llmcompressor"}[side])
    model(examples[:1])
    forget()
    before, start, busy = resident("VmRSS"), time.perf_counter(), time.process_time()
    prune(model, examples, method)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = resident("VmHWM")
    layers = {name: each.detach() != 0 for name, each in model.named_parameters() if "_proj." in name}
    torch.save(layers, masks)
    print(json.dumps({"seconds": seconds, "cpu": busy, "peak": peak, "growth": peak - before}))


if __name__ == "__main__":
    main()
