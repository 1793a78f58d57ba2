"""What layers that share their parameters start from, and what is left of each in a residual of low rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cook.share.specs import INITS

Layer = Mapping[str, Tensor]
"""The tensors of one layer, by their names in it; the same names and shapes in all layers of a group."""


def started(layers: Sequence[Layer], init: str) -> dict[str, Tensor]:
    """The tensors that all layers of a group begin with.

    After S. Bae et al., "Relaxed Recursive Transformers: Effective Parameter Sharing with Layer-wise LoRA",
    2024, whose average is `mean`.

    Args:
        layers: at least one.
        init: `mean`, in float32 at least; the tensors of the `first` one; or of the `best`, see `nearest`.
    """
    if init == "mean":
        return {name: _mean([layer[name] for layer in layers]) for name in layers[0]}
    if init in ("first", "best"):
        return dict(layers[nearest(layers) if init == "best" else 0])
    raise ValueError(f"no init {init!r}; there are {', '.join(INITS)}")


def nearest(layers: Sequence[Layer]) -> int:
    """The number of the layer that the others are nearest to: the one with the least sum of squares of their
    `distance` from it, the first of several."""
    sums = [sum(distance(each, layer) ** 2 for each in layers) for layer in layers]
    return sums.index(min(sums))


def distance(layer: Layer, start: Layer) -> float:
    """How far a layer is from what it starts with: the Frobenius norm of the difference by the layer's own.

    0 for a layer that is left as it was; infinite for one that was all zeros and is not any more.
    """
    apart = math.sqrt(sum(_square(layer[name].double() - start[name].double()) for name in layer))
    size = math.sqrt(sum(_square(each) for each in layer.values()))
    return apart / size if size else (math.inf if apart else 0.0)


def factors(difference: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of a rank, as two factors of equal size: what Bae et al. 2024 begin a residual with.

    Args:
        difference: [out, in]: what a layer's weight is beyond the shared one.
        rank: from 1 to the smaller of both sizes.

    Returns:
        `up` [out, rank] and `down` [rank, in] in the type of `difference`, of whose product it is the
        truncated SVD: `U sqrt(S)` and `sqrt(S) V^T`. In a direction that has nothing to hold only `up` is
        zero, as in adapters: were both, none could ever learn.
    """
    wide = difference.to(torch.promote_types(difference.dtype, torch.float32))
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    root = values[:rank].sqrt()
    up = left[:, :rank] * root
    down = torch.where(root == 0, torch.ones_like(root), root)[:, None] * right[:rank]
    return up.to(difference.dtype), down.to(difference.dtype)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    first = tensors[0].to(wide)
    # Around the first, so that the mean of equal tensors is each of them to the last bit.
    return (first + torch.stack([each.to(wide) - first for each in tensors]).mean(0)).to(tensors[0].dtype)


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
