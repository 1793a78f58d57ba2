"""Head pruning: the attention heads that matter least leave (Michel et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cook.model.arch.units import UnitGroup, heads
from cook.passes import register
from cook.prune.specs.units import HeadsSpec
from cook.prune.structure.scheduled import Structure

if TYPE_CHECKING:
    from cook.model.arch.anatomy import Anatomy


@register
class PruneHeads(HeadsSpec, Structure):
    """Removes attention heads; with grouped queries, a key-value head with all query heads that share it."""

    def units(self, anatomy: Anatomy) -> list[UnitGroup]:
        return heads(anatomy)
