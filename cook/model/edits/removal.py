"""Removal of units and layers: masked to zero during training, removed and recorded at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cook.model.arch.anatomy import Anatomy
from cook.model.arch.units import UnitGroup, owned, size
from cook.model.arch.units import masks as unit_masks
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.depth import skips
from cook.model.edits.edit import Edit
from cook.model.nn import sharing, surgery
from cook.model.nn.masks import Masks


def remove(
    model: nn.Module, units: UnitGroup, keep: Tensor
) -> tuple[list[Edit], dict[str, dict[int, Tensor]]]:
    """Remove the units not kept from the model.

    Args:
        keep: bool [units.count], at least one True.

    Returns:
        The edits, and for each parameter that lost entries, by axis, the indices kept.
    """
    left: dict[str, dict[int, Tensor]] = {}
    edits = []
    keep = keep.cpu()
    with surgery.tied(model):
        for part in units.parts:
            numbers = part.numbers(keep)
            for name, _, axis in owned(model, part):
                left.setdefault(name, {})[axis] = numbers
            module = surgery.get(model, part.module)
            surgery.select(module, **{"out" if part.axis == "out" else "in_": numbers})
            sizes = {"out": size(model, part.module, "out"), "in": size(model, part.module, "in")}
            edits.append(Edit("resize", part.module, sizes))
    for name, worth in units.counts.items():
        values = {key: int(keep.sum()) * each for key, each in worth.items()}
        for key, value in values.items():
            surgery.set_count(surgery.get(model, name), key, value)
        edits.append(Edit("counts", name, {"values": values}))
    return edits, left


class Removal:
    """Masks units and layers, and removes them, adapting all other masks.

    Args:
        anatomy: of the model, which is changed.
        masks: of that model.
        blueprint: each removal is recorded in it.
    """

    def __init__(self, anatomy: Anatomy, masks: Masks, blueprint: Blueprint):
        self.model = anatomy.model
        self.anatomy, self.masks, self.blueprint = anatomy, masks, blueprint

    def hold(self, owner: str, units: UnitGroup, keep: Tensor, *, too: bool = False) -> None:
        """Mask heads, neurons or dimensions to zero until they are removed.

        Args:
            owner: id of the pass.
            keep: bool [units.count]: the units to keep.
            too: add to the masks of `owner` on the same parameters instead of replacing them.
        """
        for name, mask in unit_masks(self.model, units, keep):
            held = self.masks.get(owner, name) if too else None
            self.masks.set(owner, name, mask if held is None else mask & held, leaves=True)

    def hold_layer(self, owner: str, layer: str) -> None:
        """Mask all parameters of a layer to zero until it is removed; `owner` ensures that it is skipped."""
        for name, parameter in self.model.get_submodule(layer).named_parameters():
            nothing = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
            self.masks.set(owner, f"{layer}.{name}", nothing, leaves=True)

    def remove(self, units: UnitGroup, keep: Tensor) -> None:
        """Remove units masked by `hold` from the model, and adapt the masks of other passes."""
        edits, left = remove(self.model, units, keep)
        for name, kept in left.items():
            self.masks.select(name, kept)
        for edit in edits:
            self.blueprint.append(edit)

    def remove_layers(self, layers: Sequence[str]) -> None:
        """Skip layers; they are removed and the others renumbered when the run is finished.

        Raises:
            CookError: other layers share their parameters.
        """
        sharing.check_stay(self.blueprint.shared, self.anatomy.layers, layers)
        edits = skips(self.anatomy, layers)
        for layer in layers:
            self.masks.forget(layer)
        Blueprint(edits=edits).apply(self.model)
        for edit in edits:
            self.blueprint.append(edit)
