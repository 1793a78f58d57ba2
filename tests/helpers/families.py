"""Every family that the anatomy knows, tiny: with weights far from nothing, so that attention is not even."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

from cook.model.arch.anatomy import FAMILIES, Anatomy
from tests.helpers.tiny import LABELS

NAMES = ["bert", "distilbert", "electra", "gpt2", "llama", "mistral", "qwen2", "roberta", "vit"]
"""Those whose attention scores are computed from what their projections give."""
ALL = sorted(FAMILIES)
CAUSAL = ("gpt2", "llama", "mistral", "qwen2")
ENCODER_DECODER = ("bart", "t5")
ATTENTION = {"deberta-v2": "eager"}
"""The only attention of those that cannot choose."""
WINDOW = 3
"""How many tokens the tiny Mistral looks back."""
NORM = {"gpt2": "ln_1", "vit": "layernorm_before", **dict.fromkeys(CAUSAL[1:], "input_layernorm")}
"""What lies between a layer's input and its projections; nothing in BERT and its kin."""

_COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
_TEXT = {"vocab_size": 23, "pad_token_id": 0, "max_position_embeddings": 32}
_GROUPED = {**_COMMON, **_TEXT, "num_key_value_heads": 2}
SETTINGS = {
    "bert": {**_COMMON, **_TEXT},
    "roberta": {**_COMMON, **_TEXT, "pad_token_id": 1},
    "electra": {**_COMMON, **_TEXT, "embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32, **_TEXT},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 23, "pad_token_id": 0},
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": WINDOW},
    "qwen2": _GROUPED,
    "albert": {**_COMMON, **_TEXT, "embedding_size": 8},
    "deberta-v2": {
        **_COMMON,
        **_TEXT,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 4,
        "max_relative_positions": 8,
        "share_att_key": False,
    },
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
        **_TEXT,
    },
    "gpt_neox": {**_COMMON, **_TEXT},
    "qwen3": {**_GROUPED, "head_dim": 6},
    "gemma": {**_GROUPED, "head_dim": 6},
    "phi3": _GROUPED,
    "t5": {
        "d_model": 16,
        "d_kv": 6,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 23,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 3.0,
    },
    "bart": {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 24,
        "vocab_size": 23,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "max_position_embeddings": 32,
        "init_std": 0.3,
    },
    "vit": {**_COMMON, "image_size": 8, "patch_size": 4, "num_channels": 1},
}


def made(family: str, attention: str = "sdpa", *, device: str = "cpu", dtype=torch.float32, **config):
    """A classifier of two classes in eval mode; the same weights every time."""
    settings = AutoConfig.for_model(
        family, **{**SETTINGS[family], "initializer_range": 0.3, **LABELS, **config}
    )
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    torch.manual_seed(0)
    with torch.device(device):
        return auto.from_config(settings, attn_implementation=attention).to(dtype).eval()


def batch(family: str, *, left: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Three examples; texts of 6, 4 and 3 tokens, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 1])
    if family == "vit":
        return {"pixel_values": torch.randn(3, 1, 8, 8, generator=generator), "labels": labels}
    mask = (torch.arange(6) < torch.tensor([[6], [4], [3]])).long()
    tokens = torch.randint(5, 23, (3, 6), generator=generator)
    padding = SETTINGS[family]["pad_token_id"]
    if left:
        mask = mask.flip(1)
    tokens = tokens.where(mask.bool(), padding)
    if family in ENCODER_DECODER:
        tokens[torch.arange(3), mask.sum(1) - 1] = 1  # what their heads read stands at the end of the text
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def attended(family: str, inputs: dict[str, Tensor], tokens: int) -> Tensor:
    """Which tokens may attend to which, position by position: bool [batch, tokens, tokens]."""
    count = len(inputs["labels"])
    mask = inputs.get("attention_mask", torch.ones(count, tokens))
    found = torch.zeros(count, tokens, tokens, dtype=torch.bool)
    for row in range(count):
        for query in range(tokens):
            for key in range(tokens):
                near = key <= query if family in CAUSAL else True
                near = near and (family != "mistral" or query - key < WINDOW)
                found[row, query, key] = near and bool(mask[row, query]) and bool(mask[row, key])
    return found


def factors(model: nn.Module, layer: int, states: Tensor) -> list[Tensor]:
    """Queries, keys and values of a layer, head by head and position by position, from its weights."""
    anatomy = Anatomy(model)
    at = anatomy.layers[layer]
    config = model.config
    if anatomy.kind in NORM:
        states = model.get_submodule(f"{at}.{NORM[anatomy.kind]}")(states)
    width = config.hidden_size // config.num_attention_heads
    found = []
    for index, name in enumerate(anatomy.projections(at)):
        module = model.get_submodule(name)
        weight, bias = module.weight, module.bias
        if anatomy.kind == "gpt2":
            columns = slice(index * config.hidden_size, (index + 1) * config.hidden_size)
            weight, bias = weight[:, columns].T, bias[columns]
        heads = []
        for start in range(0, len(weight), width):
            head = states @ weight[start : start + width].T
            heads.append(head if bias is None else head + bias[start : start + width])
        if anatomy.kind in CAUSAL[1:] and index < 2:
            heads = [turned(head, config.rope_parameters["rope_theta"]) for head in heads]
        found.append(torch.stack(heads, 1))
    return found


def turned(head: Tensor, theta: float) -> Tensor:
    """The rotation of a rotary embedding: number i and number i + width / 2 are a plane."""
    half = head.shape[-1] // 2
    positions = []
    for position in range(head.shape[1]):
        one, other = head[:, position, :half], head[:, position, half:]
        angles = [position * theta ** (-2 * index / head.shape[-1]) for index in range(half)]
        cos, sin = (head.new_tensor([turn(angle) for angle in angles]) for turn in (math.cos, math.sin))
        positions.append(torch.cat([one * cos - other * sin, other * cos + one * sin], -1))
    return torch.stack(positions, 1)
