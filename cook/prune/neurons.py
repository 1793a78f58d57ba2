"""Neuron pruning: the FFN neurons that matter least leave, in widths that suit the hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cook.model.units import Units, neurons
from cook.passes import register
from cook.prune.structure import UNITS, Structure

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy


@register
class PruneNeurons(Structure):
    """Removes neurons of FFNs: rows of what leads to them, columns of what leads away, gates included."""

    name = "prune.neurons"
    summary = "remove the least important neurons of FFNs; what is left is smaller and faster"
    options: ClassVar[dict[str, Any]] = {
        **UNITS,
        "multiple": {
            "enum": [1, 8, 16, 32, 64],
            "default": 8,
            "description": "of what each layer's width stays or becomes one; hardware likes round widths",
        },
    }
    examples = (
        {"sparsity": 0.5},
        {"sparsity": 0.3, "importance": "magnitude", "multiple": 1},
        {"sparsity": 0.25, "importance": "random", "scope": "layer", "multiple": 8},
    )

    def units(self, anatomy: Anatomy) -> list[Units]:
        return neurons(anatomy)

    @property
    def multiple(self) -> int:  # type: ignore[override]
        return int(self.given["multiple"])
