"""Neuron pruning: the FFN neurons that matter least leave, in widths that suit the hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cook.model.units import Units, neurons
from cook.passes import register
from cook.prune.structure import Structure
from cook.prune.unit_options import MULTIPLE, UNITS

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy


@register
class PruneNeurons(Structure):
    """Removes neurons of FFNs: rows of what leads to them, columns of what leads away, gates included."""

    name = "prune.neurons"
    summary = "remove the least important neurons of FFNs; what is left is smaller and faster"
    options: ClassVar[dict[str, Any]] = {
        **UNITS,
        "multiple": MULTIPLE,
    }
    examples = (
        {"sparsity": 0.5},
        {"sparsity": 0.3, "importance": "magnitude", "multiple": 1},
        {"sparsity": 0.25, "importance": "random", "scope": "layer", "multiple": 8},
        {"budget": {"parameters": 0.8}, "importance": "fisher"},
    )

    def units(self, anatomy: Anatomy) -> list[Units]:
        return neurons(anatomy)
