"""The residual stream of a model: the modules that write to it, read from it and normalise it.

Its dimensions are units like heads and neurons: rows of writers, columns of readers, entries of norms. A
family is supported if all modules connected to its stream are known; any other module whose shape contains
the width is refused by name. An output head tied to the embeddings belongs to the same dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.families import STREAMS
from cook.model.arch.units import Part, UnitGroup, placed, size
from cook.model.nn import linear, surgery
from cook.model.nn.composite import whole
from cook.model.nn.embedding import widening
from cook.model.nn.hooks import Hooks

_TOKENS = {
    "cls.predictions.transform.dense": "cls.predictions.transform.LayerNorm",
    "lm_head.dense": "lm_head.layer_norm",
    "vocab_transform": "vocab_layer_norm",
    "generator_predictions.dense": "generator_predictions.LayerNorm",
}
"""The transform of token states before an output head that may be tied to the embeddings, and its norm."""
_POOLED = ("pooler.dense", "pre_classifier")
"""Modules that read the stream and produce other states, which `classifier` reads."""
_READS = (
    *("score", "qa_outputs", "classifier", "classifier.dense", "discriminator_predictions.dense"),
    *("lm_head", "lm_head.decoder", "cls.predictions.decoder", "vocab_projector", "generator_lm_head"),
)
_APART = ("cls.seq_relationship", "classifier.out_proj", "discriminator_predictions.dense_prediction")
"""Modules of the stream's width that read the output of another reader."""


def stream(anatomy: Anatomy) -> UnitGroup:
    """The residual stream; a unit is one of its dimensions, and `outputs` are the modules that read it.

    Raises:
        CookError: the family's stream is unknown, or a module of its width is not accounted for.
    """
    model = anatomy.model
    if (known := STREAMS.get(anatomy.kind)) is None:
        raise CookError(
            f"cook does not know all that touches the residual stream of a {anatomy.kind!r} model",
            hint=f"known: {', '.join(STREAMS)}",
        )
    at = anatomy.prefix
    pooled = [name for name in (f"{at}{_POOLED[0]}", _POOLED[1]) if surgery.has(model, name)]
    writes = [*(widening(model, f"{at}{name}") for name in known.writes), *_TOKENS]
    heads = (widening(model, name) for name in _READS if not (pooled and name == "classifier"))
    reads = [*pooled, *_TOKENS, *heads]
    norms = [*(f"{at}{name}" for name in known.outer), *_TOKENS.values()]
    for layer in anatomy.live:
        kind = anatomy.stacks[layer]
        writes += [
            f"{layer}.{name}" for name in (*(a.output for a in kind.attentions), kind.feed_forward.down)
        ]
        inner = [name for each in kind.attentions for name in dict.fromkeys(each.projections)]
        reads += [f"{layer}.{name}" for name in (*inner, *kind.feed_forward.up)]
        norms += [f"{layer}.{name}" for name in known.norms or (*kind.norms[0], *kind.norms[1])]
    width = size(model, anatomy.projections(anatomy.live[0])[0], "in")
    every = ((0, 1),)

    def touching(names: list[str], axis: str) -> list[Part]:
        wide = [name for name in names if _reach(model, name, axis) == width]
        return [part for name in wide for part in placed(model, name, axis, every)]

    parts, outputs = touching([*writes, *norms], "out"), touching(reads, "in")
    apart = [*_APART, *(["classifier"] if pooled else [])]
    _account(anatomy, width, [*(part.module for part in (*parts, *outputs)), *apart])
    return UnitGroup("hidden", tuple(anatomy.live), width, (*parts, *outputs), tuple(outputs), {})


def _reach(model: nn.Module, name: str, axis: str) -> int | None:
    """The width of a module on one side; None if there is no such module or it has no such side."""
    if not surgery.has(model, name):
        return None
    module: Any = surgery.get(model, name)
    if linear.is_linear(module) or linear.is_composite(module):
        return linear.shape(module)[0 if axis == "out" else 1]
    if axis == "in":
        return None
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if surgery.is_channels(module):
        return module.out_channels
    return next(module.parameters(recurse=False)).shape[-1] if surgery.is_vectors(module) else None


def _account(anatomy: Anatomy, width: int, known: list[str]) -> None:
    """Raise CookError if a module of this width is not one of the known modules."""
    present = [whole(anatomy.model, name) for name in known if surgery.has(anatomy.model, name)]
    inside = {name: surgery.get(anatomy.model, name) for name in present}
    # Modules inside cook's replacements and composites are resized with them.
    made = {name for name, each in inside.items() if linear.is_linear(each) or linear.is_composite(each)}
    standing = tuple(f"{name}." for name in made)
    unknown = [
        name
        for name, parameter in anatomy.model.named_parameters(remove_duplicate=False)
        if width in parameter.shape
        and name.rpartition(".")[0] not in inside
        and not name.startswith(standing)
    ]
    if unknown:
        several = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        named = ", ".join(unknown[:3]) + several
        message = f"{named} may belong to the residual stream of this {anatomy.kind} model"
        raise CookError(message, hint="cook does not know what that does with it")
    for name, module in inside.items():
        if "Norm" in type(module).__name__ and _epsilon(module) is None:
            raise CookError(f"{name} is a {type(module).__name__}, whose statistics cook does not know")


def norms(model: nn.Module, units: UnitGroup) -> list[str]:
    """The norms over a stream."""
    modules = (part.module for part in units.parts)
    return [name for name in modules if "Norm" in type(surgery.get(model, name)).__name__]


def writers(model: nn.Module, units: UnitGroup) -> list[str]:
    """The modules whose outputs [..., width] are added to a stream, or begin it."""
    named = {part.module for part in units.parts if part.axis == "out"} - set(norms(model, units))
    # Convolution outputs have another layout; position parameters beside them are added to the stream.
    return sorted(name for name in named if not surgery.is_channels(surgery.get(model, name)))


def weighted_norm(states: Tensor, gates: Tensor, module: Any) -> Tensor:
    """The output of a LayerNorm or RMSNorm in which each dimension is weighted by its gate z.

    Mean and variance are `sum z x / sum z` and `sum z (x - mean)^2 / sum z`, and the output is multiplied
    by z: for gates of 0 and 1 it is exactly the norm of the narrowed states.
    Args:
        states: [..., width].
        gates: [width], from 0 to 1, not all 0.
        module: the norm.
    """
    dtype = torch.promote_types(states.dtype, torch.float32)
    found, z = states.to(dtype), gates.to(states.device, dtype)
    share = z / z.sum().clamp_min(1e-6)
    if isinstance(module, nn.LayerNorm):
        found = found - (found * share).sum(-1, keepdim=True)
    scale = (found.square() * share).sum(-1, keepdim=True).add(_epsilon(module) or 0.0).rsqrt()
    found = found * scale * module.weight
    if getattr(module, "bias", None) is not None:
        found = found + module.bias
    return found * z


def narrowing(model: nn.Module, units: UnitGroup, hooks: Hooks, gates: Any) -> None:
    """Register hooks that multiply with gates on all modules that write to or normalise a stream.

    Args:
        gates: called in every forward: [width], or None to leave everything unchanged.
    """

    def write(_: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return None if (z := gates()) is None else output * z.to(output)

    def norm(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return None if (z := gates()) is None else weighted_norm(inputs[0], z, module).to(output.dtype)

    for name in writers(model, units):
        hooks.forward(surgery.get(model, name), write)
    for name in norms(model, units):
        hooks.forward(surgery.get(model, name), norm)


def _epsilon(module: Any) -> float | None:
    if isinstance(module, nn.LayerNorm):
        return float(module.eps)
    return getattr(module, "variance_epsilon", None) if type(module).__name__.endswith("RMSNorm") else None
