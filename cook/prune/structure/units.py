"""Heads and neurons chosen together: what matters least for what it costs leaves, until a goal is met."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cook.model.arch.units import UnitGroup, units
from cook.passes import register
from cook.prune.specs.units import UnitsSpec
from cook.prune.structure.scheduled import Structure

if TYPE_CHECKING:
    from cook.model.arch.anatomy import Anatomy


@register
class PruneUnits(UnitsSpec, Structure):
    """Removes heads and neurons by importance per cost.

    W. Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022: the Fisher
    information of a unit approximates the increase of the loss and is comparable across heads and neurons.
    """

    def units(self, anatomy: Anatomy) -> list[UnitGroup]:
        return units(anatomy)
