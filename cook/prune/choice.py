"""Which heads or neurons go: the least important ones, within what each layer can spare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spare(count: int, minimum: int = 1, limit: float = 1.0, multiple: int = 1) -> int:
    """How many of `count` units a layer can lose.

    Args:
        minimum: units that stay at least.
        limit: the largest share that goes.
        multiple: those that stay are a multiple of it, unless all stay.
    """
    stay = max(minimum, count - int(limit * count + 1e-9), 1)
    stay = -(-stay // multiple) * multiple
    return max(0, count - stay)


def least(
    scores: Sequence[Tensor],
    share: float,
    *,
    scope: str = "global",
    minimum: int = 1,
    limit: float = 1.0,
    multiple: int = 1,
) -> list[Tensor]:
    """Which units stay when the share of the least important goes.

    Units leave a layer in blocks: the least important ones that make the rest a multiple, then `multiple`
    at a time. A block is as important as its mean, and blocks go until as near as possible to `share` of all
    units is gone. With `multiple` 1 exactly `round(share * units)` go, or as many as the layers can spare.

    Args:
        scores: of each layer's units; equal ones go in order, and those at minus infinity go in any case.
        scope: `global`, over all layers together, or `layer`, in each by itself.
        minimum, limit, multiple: of each layer, as in `spare`.

    Returns:
        A bool mask for each layer, True where a unit stays.
    """
    if scope == "layer":
        options = {"minimum": minimum, "limit": limit, "multiple": multiple}
        return [least([each], share, **options)[0] for each in scores]  # type: ignore[arg-type]
    if scope != "global":
        raise ValueError(f"no scope {scope!r}; there are global and layer")
    blocks = []
    for layer, each in enumerate(scores):
        order = torch.argsort(each, stable=True)
        first, count = len(each) % multiple or multiple, len(each)
        ends = range(first, spare(count, minimum, limit, multiple) + 1, multiple)
        for position, end in enumerate(ends):
            units = order[end - (multiple if position else first) : end]
            blocks.append((float(each[units].double().mean()), layer, position, units))
    target = round(share * sum(len(each) for each in scores))
    keep = [torch.ones(len(each), dtype=torch.bool) for each in scores]
    gone = 0
    for score, layer, _, units in sorted(blocks, key=lambda block: block[:3]):
        if score > -torch.inf and 2 * (target - gone) < len(units):
            break
        keep[layer][units.cpu()] = False
        gone += len(units)
    return keep
