"""Neuron pruning: the FFN neurons that matter least leave, in widths that suit the hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cook.model.arch.units import UnitGroup, neurons
from cook.passes import register
from cook.prune.specs.units import NeuronsSpec
from cook.prune.structure.scheduled import Structure

if TYPE_CHECKING:
    from cook.model.arch.anatomy import Anatomy


@register
class PruneNeurons(NeuronsSpec, Structure):
    """Removes FFN neurons: rows of the up and gate projections, columns of the down projection."""

    def units(self, anatomy: Anatomy) -> list[UnitGroup]:
        return neurons(anatomy)
