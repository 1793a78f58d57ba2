"""Head pruning: the attention heads that matter least leave (Michel et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cook.model.units import Units, heads
from cook.passes import register
from cook.prune.structure import Structure
from cook.prune.unit_options import UNITS

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy


@register
class PruneHeads(Structure):
    """Removes attention heads; under grouped queries a key-value head with all the queries that share it."""

    name = "prune.heads"
    summary = "remove the least important attention heads; what is left is smaller and faster"
    options: ClassVar[dict[str, Any]] = UNITS
    examples = (
        {"sparsity": 0.5},
        {"sparsity": 0.5, "importance": "magnitude", "scope": "layer"},
        {"sparsity": 0.25, "importance": "random", "schedule": "constant"},
        {"budget": {"macs": 0.9}, "normalize": True},
    )

    def units(self, anatomy: Anatomy) -> list[Units]:
        return heads(anatomy)
