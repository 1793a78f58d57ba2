"""Heads and neurons chosen together: what matters least for what it costs leaves, until a goal is met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cook.model.units import Units, units
from cook.passes import register
from cook.prune.budget import NEEDED
from cook.prune.structure import Structure
from cook.prune.unit_options import MULTIPLE, UNITS

if TYPE_CHECKING:
    from cook.model.anatomy import Anatomy

_SHARES = ("sparsity", "scope", "normalize")


@register
class PruneUnits(Structure):
    """Removes heads and neurons by importance per cost.

    W. Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022: the loss grows
    by the Fisher information of the units that close, which is comparable over heads, neurons and layers.
    """

    name = "prune.units"
    summary = "remove heads and neurons together until a share of parameters, MACs or time is left"
    required = ("budget",)
    options: ClassVar[dict[str, Any]] = {
        "budget": NEEDED,
        **{key: value for key, value in UNITS.items() if key not in (*_SHARES, "budget")},
        "importance": {**UNITS["importance"], "default": "fisher"},
        "multiple": MULTIPLE,
    }
    examples = (
        {"budget": {"macs": 0.6}},
        {"budget": {"parameters": 0.7}, "importance": "magnitude", "schedule": "constant"},
    )

    def units(self, anatomy: Anatomy) -> list[Units]:
        return units(anatomy)
