"""Which numbers of the model are kept: masks that passes lay over parameters.

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
    """True for exactly `count` of the lowest scores; among equal ones the first in order.

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
    """The hard masks of a session, by (owner, parameter name); several meet by intersection.

    Args:
        model: its parameters are looked up by name, and one that is tied under two names is one.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._masks: dict[str, dict[str, Tensor]] = {}
        # What `apply` multiplies with, made when it first does: where nothing trains it never is.
        self._joint: dict[str, tuple[nn.Parameter, Tensor]] = {}
        self._structural: set[str] = set()

    def set(self, owner: str, name: str, keep: Tensor, *, leaves: bool = False) -> None:
        """Lay or replace the mask of `owner` over parameter `name`, and zero what it drops now.

        Args:
            owner: the id of a pass.
            name: a parameter's name in the model.
            keep: bool, in the parameter's own shape; True is kept.
            leaves: whether what is dropped will leave the model at the end: whole rows and columns.
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
        """Forget the masks of `owner`: what they zeroed is zero now and free to learn again."""
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
        """The mask that `owner` laid over parameter `name`, if any."""
        return self._masks.get(self._first_name(self._model.get_parameter(name)), {}).get(owner)

    def held(self, owner: str) -> int:
        """How many numbers the masks of `owner` hold at zero."""
        return sum(int((~owners[owner]).sum()) for owners in self._masks.values() if owner in owners)

    def leaving(self, parameter: Tensor) -> Tensor | None:
        """What of a parameter will leave the model at the end: bool, in its shape; None for nothing."""
        for name, owners in self._masks.items():
            masks = [keep for owner, keep in owners.items() if owner in self._structural]
            if masks and self._model.get_parameter(name) is parameter:
                return ~_meet(masks)
        return None

    def select(self, name: str, kept: Mapping[int, Tensor]) -> None:
        """Follow parameter `name`, which has lost rows or columns.

        Args:
            kept: by axis of the parameter, the numbers that are left.
        """
        if name not in self._masks:
            return
        for axis, index in kept.items():
            for owner, keep in self._masks[name].items():
                self._masks[name][owner] = keep.index_select(axis, index.to(keep.device))
        owner, keep = next(iter(self._masks[name].items()))
        self.set(owner, name, keep)

    def forget(self, module: str) -> None:
        """Drop all masks over what is in a module, which is about to leave the model."""
        inside = [name for name in self._masks if name.startswith(f"{module}.")]
        for name in inside:
            self._joint.pop(name, None)
            del self._masks[name]

    @torch.no_grad()
    def apply(self) -> None:
        """Zero in place what any mask drops."""
        for name in self._masks.keys() - self._joint.keys():
            parameter = self._model.get_parameter(name)
            # In the weight's dtype: multiplying by bool would convert the mask at every step.
            self._joint[name] = parameter, _meet(self._masks[name].values()).to(parameter.dtype)
        if self._joint:
            parameters, masks = zip(*self._joint.values(), strict=True)
            torch._foreach_mul_(parameters, masks)

    def __bool__(self) -> bool:
        """Whether any mask is laid."""
        return bool(self._masks)

    @torch.no_grad()
    def broken(self) -> list[str]:
        """The parameters that are not zero where a mask holds them."""
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
    """What all of some masks keep."""
    return torch.stack(list(keeps)).all(0) if len(keeps) > 1 else next(iter(keeps))


def soften(model: nn.Module, name: str, owner: str, kind: type[M] = SoftMask) -> M:  # type: ignore[assignment]
    """Give linear layer `name` a soft mask of `owner`, replacing the layer if it is a plain one.

    Args:
        kind: of mask: `SoftMask`, whose gradients are straight-through, or a subclass with other ones.

    Returns:
        The mask, all True; set its `keep` [out, in] in place.
    """
    layer = transform(model, name)
    mask = kind(layer.out_features, layer.in_features, layer.weight.device)
    layer.add_weight_transform(owner, mask)
    return mask


@torch.no_grad()
def fold(model: nn.Module, name: str, owner: str) -> None:
    """Multiply the soft mask of `owner` into the weight of layer `name` and take the mask away."""
    layer = model.get_submodule(name)
    assert isinstance(layer, TransformedLinear)
    mask = layer.weight_transform(owner)
    assert isinstance(mask, SoftMask)
    layer.weight.mul_(mask.keep.t() if layer.transposed else mask.keep)
    layer.remove(owner)
    restore(model, name)
