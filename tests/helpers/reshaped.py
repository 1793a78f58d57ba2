"""Tiny models as passes leave them behind: FFNs of other widths, linears of integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cook.model.edits.edit import Edit
from cook.model.hub.quantizer import attach_quantizer, blueprint_of
from cook.model.nn import linear, surgery
from cook.model.nn.integer import IntLinear
from tests.helpers import tiny

FFN = {
    "bert": ("bert.encoder.layer.1.intermediate.dense", "bert.encoder.layer.1.output.dense"),
    "gpt2": ("transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"),
    "llama": ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"),
    "vit": ("vit.layers.1.mlp.fc1", "vit.layers.1.mlp.fc2"),
}
"""The layers that share the second block's FFN width: the last one takes it as its input."""


def auto_class(family: str) -> str:
    return f"AutoModelFor{'Image' if family == 'vit' else 'Sequence'}Classification"


def narrow(model: PreTrainedModel, family: str, width: int = 5) -> PreTrainedModel:
    """Give one FFN another width, which no config can say."""
    blueprint = blueprint_of(model)
    for name in FFN[family]:
        module = surgery.get(model, name)
        out, columns = linear.shape(module)
        out, columns = (out, width) if name == FFN[family][-1] else (width, columns)
        surgery.resize(module, out, columns)
        blueprint.append(Edit("resize", name, {"in": columns, "out": out}))
    attach_quantizer(model, blueprint)
    return model


def integers(model: PreTrainedModel, *, static: bool = False) -> PreTrainedModel:
    """Store every linear as integers: 4 bits in the first block, 8 elsewhere."""
    blueprint = blueprint_of(model)
    kind = {"bits": 8, "kind": "static" if static else "token"}
    for name, module in list(model.named_modules()):
        if not linear.is_linear(module):
            continue
        out, columns = linear.shape(module)
        bits = 4 if ".0." in name else 8
        new = IntLinear.from_linear(module, bits, kind, input_scale=torch.tensor(0.02) if static else None)
        surgery.replace(model, name, new)
        options: dict[str, Any] = {"bits": bits, "activation": kind, "in": columns, "out": out}
        blueprint.append(Edit("integer", name, {**options, "bias": new.bias is not None}))
    attach_quantizer(model, blueprint)
    return model


def make(family: str, kind: str, seed: int = 0) -> Any:
    """A tiny model: `plain`, `narrow`, `integers`, or `both`."""
    model = tiny.model(family, seed=seed).eval()
    if kind in ("narrow", "both"):
        narrow(model, family)
    if kind in ("integers", "both"):
        integers(model, static=kind == "both")
    return model


def inputs(family: str) -> dict[str, Tensor]:
    return {name: value for name, value in tiny.batch(family).items() if name != "labels"}


def logits(model: Any, family: str) -> Tensor:
    with torch.inference_mode():
        return model(**inputs(family)).logits


def own_memory(model):
    """The model with weights in memory of their own: those mapped from a file can lie where a processor's
    kernels sum in another order, and outputs are to be equal to the bit."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model
