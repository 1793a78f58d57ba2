"""Masks that passes set on parameters, marking which values are kept.

A *hard* mask zeroes weights in place after each optimizer step. Under it the gradient of a masked
weight times the weight is zero, so methods whose masks grow back use the *soft* kind: the layer keeps
its dense weight and computes with `weight * mask` (see `transformed.SoftMask`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cook.model.nn.transformed import SoftMask, TransformedLinear, restore, transform

M = TypeVar("M", bound=SoftMask)


def lowest(scores: Tensor, count: int) -> Tensor:
    """A mask that is True for exactly `count` of the lowest scores; ties are broken by order.

    Args:
        scores: any shape, finite; memory of one copy is needed.
        count: 0 to the number of scores.

    Returns:
        A bool tensor of the same shape.
    """
    flat = scores.flatten()
    if not 0 <= count <= flat.numel():
        raise ValueError(f"cannot choose {count} of {flat.numel()}")
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(count).values
    chosen = flat < threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.view_as(scores)


class Masks:
    """The hard masks of a session, by (owner, parameter name); several masks are intersected.

    Args:
        model: the model whose parameters are looked up by name; a tied parameter counts once.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._masks: dict[str, dict[str, Tensor]] = {}
        # The factors that `apply` multiplies with, created on its first call: never without training.
        self._joint: dict[str, tuple[nn.Parameter, Tensor]] = {}
        self._structural: set[str] = set()

    def set(self, owner: str, name: str, keep: Tensor, *, leaves: bool = False) -> None:
        """Set or replace the mask of `owner` on parameter `name`, and zero what it masks immediately.

        Args:
            owner: the id of a pass.
            name: a parameter's name in the model.
            keep: bool, in the parameter's own shape; True is kept.
            leaves: whether the masked rows and columns will be removed from the model at the end.
        """
        parameter = self._model.get_parameter(name)
        if keep.shape != parameter.shape:
            raise ValueError(
                f"{name}: a mask of {tuple(keep.shape)} over a weight of {tuple(parameter.shape)}"
            )
        if leaves:
            self._structural.add(owner)
        name = self._first_name(parameter)
        owners = self._masks.setdefault(name, {})
        owners[owner] = keep
        self._joint.pop(name, None)
        with torch.no_grad():
            parameter.mul_(_meet(owners.values()))

    def drop(self, owner: str) -> None:
        """Remove the masks of `owner`: the masked values stay zero, but can be trained again."""
        self._structural.discard(owner)
        for name in [name for name, owners in self._masks.items() if owner in owners]:
            owners = self._masks[name]
            del owners[owner]
            self._joint.pop(name, None)
            if owners:
                other, keep = next(iter(owners.items()))
                self.set(other, name, keep)
            else:
                del self._masks[name]

    def get(self, owner: str, name: str) -> Tensor | None:
        """The mask that `owner` set on parameter `name`, if any."""
        return self._masks.get(self._first_name(self._model.get_parameter(name)), {}).get(owner)

    def held(self, owner: str) -> int:
        """The number of values that the masks of `owner` keep at zero."""
        return sum(int((~owners[owner]).sum()) for owners in self._masks.values() if owner in owners)

    def leaving(self, parameter: Tensor) -> Tensor | None:
        """The entries of a parameter to be removed at the end: bool, of its shape; None if there are none."""
        for name, owners in self._masks.items():
            masks = [keep for owner, keep in owners.items() if owner in self._structural]
            if masks and self._model.get_parameter(name) is parameter:
                return ~_meet(masks)
        return None

    def select(self, name: str, kept: Mapping[int, Tensor]) -> None:
        """Adapt the masks of parameter `name` after it has lost rows or columns.

        Args:
            kept: indices kept, by axis of the parameter.
        """
        if name not in self._masks:
            return
        for axis, index in kept.items():
            for owner, keep in self._masks[name].items():
                self._masks[name][owner] = keep.index_select(axis, index.to(keep.device))
        owner, keep = next(iter(self._masks[name].items()))
        self.set(owner, name, keep)

    def forget(self, module: str) -> None:
        """Remove all masks on the parameters of a module that is about to be removed."""
        inside = [name for name in self._masks if name.startswith(f"{module}.")]
        for name in inside:
            self._joint.pop(name, None)
            del self._masks[name]

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the masked values in place."""
        for name in self._masks.keys() - self._joint.keys():
            parameter = self._model.get_parameter(name)
            # In the weight's dtype: multiplying by bool would convert the mask at every step.
            self._joint[name] = parameter, _meet(self._masks[name].values()).to(parameter.dtype)
        if self._joint:
            parameters, masks = zip(*self._joint.values(), strict=True)
            torch._foreach_mul_(parameters, masks)

    def __bool__(self) -> bool:
        """Whether any mask is set."""
        return bool(self._masks)

    @torch.no_grad()
    def broken(self) -> list[str]:
        """The parameters with nonzero masked values."""
        names = list(self._masks)
        counts = [
            torch.count_nonzero(parameter.masked_fill(_meet(self._masks[name].values()), 0)).cpu()
            for name in names
            for parameter in [self._model.get_parameter(name)]
        ]
        return [name for name, count in zip(names, counts, strict=True) if count]

    def state_dict(self) -> dict[str, Any]:
        masks = {name: dict(owners) for name, owners in self._masks.items()}
        return {"masks": masks, "structural": sorted(self._structural)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._masks, self._joint = {}, {}
        self._structural = set(state["structural"])
        for name, owners in state["masks"].items():
            device = self._model.get_parameter(name).device
            for owner, keep in owners.items():
                self.set(owner, name, keep.to(device))

    def _first_name(self, parameter: nn.Parameter) -> str:
        return next(name for name, other in self._model.named_parameters() if other is parameter)


def _meet(keeps: Collection[Tensor]) -> Tensor:
    """The intersection of several masks."""
    return torch.stack(list(keeps)).all(0) if len(keeps) > 1 else next(iter(keeps))


def soften(model: nn.Module, name: str, owner: str, kind: type[M] = SoftMask) -> M:  # type: ignore[assignment]
    """Add a soft mask of `owner` to linear layer `name`, replacing the layer if it is a plain one.

    Args:
        kind: the mask class: `SoftMask`, with straight-through gradients, or a subclass with others.

    Returns:
        The mask, all True; set its `keep` [out, in] in place.
    """
    layer = transform(model, name)
    mask = kind(layer.out_features, layer.in_features, layer.weight.device)
    layer.add_weight_transform(owner, mask)
    return mask


@torch.no_grad()
def fold(model: nn.Module, name: str, owner: str) -> None:
    """Multiply the soft mask of `owner` into the weight of layer `name` and remove the mask."""
    layer = model.get_submodule(name)
    assert isinstance(layer, TransformedLinear)
    mask = layer.weight_transform(owner)
    assert isinstance(mask, SoftMask)
    layer.weight.mul_(mask.keep.t() if layer.transposed else mask.keep)
    layer.remove(owner)
    restore(model, name)
