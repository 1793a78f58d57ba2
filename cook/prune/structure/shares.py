"""What gates may save, as shares of a model's cost: with all that stays, and as it is expected to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cook.prune.structure.cost import Cost


@dataclass(frozen=True)
class Narrow:
    """What of `Shares` goes with the width of the residual stream, and what with its square.

    Attributes:
        curves: of each curve, from 0 to 1.
        layers: of what each gated layer costs beside its units, from 0 to 1.
        rest: of all else, as a share of the whole model.
        square: what goes with the square, as a share of the whole model.
    """

    curves: Sequence[float]
    layers: Sequence[float]
    rest: float
    square: float


@dataclass(frozen=True)
class Shares:
    """What gates may save, as shares of what the whole model costs.

    Attributes:
        curves: for each attention and FFN what 0, 1, ... of its units cost, float64 [count + 1].
        homes: the number of the gated layer that holds each of them; None where the layer has no gate.
        layers: what each gated layer costs beside its units.
        rest: all else.
        narrow: what of these goes with the width; None where that has no gates.
    """

    curves: Sequence[Tensor]
    homes: Sequence[int | None]
    layers: Sequence[float]
    rest: float
    narrow: Narrow | None = None

    @classmethod
    def made(cls, cost: Cost, homes: Sequence[int | None], layers: Sequence[str]) -> Shares:
        """Those of a cost.

        Args:
            homes: one for each of its curves.
            layers: the names of the gated layers.
        """
        own = [cost.layers.get(layer, 0.0) / cost.whole for layer in layers]
        curves = [curve / cost.whole for curve in cost.curves]
        rest = 1 - sum(own) - sum(float(curve[-1]) for curve in curves)
        narrow = None
        if (wide := cost.wide) is not None:
            narrow = Narrow(
                [_part(part, float(curve[-1])) for part, curve in zip(wide.curves, cost.curves, strict=True)],
                [_part(wide.layers[layer], cost.layers[layer]) for layer in layers],
                (wide.rest + sum(part for layer, part in wide.layers.items() if layer not in layers))
                / cost.whole,
                wide.square / cost.whole,
            )
        return cls(curves, homes, own, rest, narrow)

    def of(self, layers: Sequence[bool], counts: Sequence[int], width: float = 1.0) -> float:
        """The share that these layers cost with so many units left in each attention and FFN.

        Args:
            width: the share of the residual stream that is left.
        """
        owned = sum(
            own * self.layer_at(number, width)
            for number, (own, stays) in enumerate(zip(self.layers, layers, strict=True))
            if stays
        )
        units = sum(
            float(curve[count]) * self.curve_at(entry, width)
            for entry, (curve, home, count) in enumerate(zip(self.curves, self.homes, counts, strict=True))
            if home is None or layers[home]
        )
        saved = 0.0
        if self.narrow is not None:
            saved = (1 - width) * self.narrow.rest + (1 - width**2) * self.narrow.square
        return self.rest - saved + owned + units

    def curve_at(self, entry: int, width: float) -> float:
        """What a unit of an entry costs at a width, by what it costs at the full one."""
        return 1.0 if self.narrow is None else 1 - (1 - width) * self.narrow.curves[entry]

    def layer_at(self, number: int, width: float) -> float:
        """The same of a gated layer."""
        return 1.0 if self.narrow is None else 1 - (1 - width) * self.narrow.layers[number]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: times that were measured are other ones the next time."""
        return {"curves": list(self.curves), "layers": list(self.layers), "rest": self.rest}

    def restored(self, state: Any) -> Shares:
        """Those of a state."""
        curves = [curve.cpu() for curve in state["curves"]]
        return Shares(curves, self.homes, list(state["layers"]), state["rest"], self.narrow)


def _part(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


class Expected:
    """The share of the cost that is expected to be left, for every step of a run.

    Args:
        shares: that the model costs.
        like: any tensor of the type and on the device that probabilities come in.
    """

    def __init__(self, shares: Shares, like: Tensor):
        longest = max(len(curve) for curve in shares.curves)
        padded = [torch.cat([curve, curve[-1:].expand(longest - len(curve))]) for curve in shares.curves]
        self._table = torch.stack(padded).to(like)
        self._last = torch.tensor([len(curve) - 2 for curve in shares.curves], device=like.device)
        homes = [len(shares.layers) if home is None else home for home in shares.homes]
        self._homes = torch.tensor(homes, device=like.device)
        self._layers = like.new_tensor(list(shares.layers))
        self._rest = shares.rest
        self._narrow = narrow = shares.narrow
        if narrow is not None:
            self._of_curves, self._of_layers = like.new_tensor(narrow.curves), like.new_tensor(narrow.layers)

    def __call__(self, layers: Tensor, counts: Tensor, width: Tensor | None = None) -> Tensor:
        """A scalar, differentiable.

        A unit costs something if it is open and its layer is, which are independent. Between whole numbers
        of units a curve is straight, so for costs that are proportional to them this is exact.

        Args:
            layers: how probable it is that each gated layer stays.
            counts: how many units of each attention and FFN are expected to be open.
            width: how probable it is that each dimension of the residual stream stays; None: all do.
        """
        low = counts.detach().floor().long().clamp_min(0).minimum(self._last)
        below, above = (self._table.gather(1, (low + one)[:, None])[:, 0] for one in (0, 1))
        units = below + (counts - low) * (above - below)
        stays = torch.cat([layers, layers.new_ones(1)])[self._homes]
        owned, saved = self._layers, layers.new_zeros(())
        if self._narrow is not None and width is not None:
            gone = 1 - width.mean()
            units, owned = units * (1 - gone * self._of_curves), owned * (1 - gone * self._of_layers)
            # Of n gates the expected square of how many are open.
            square = width.mean().square() + (width * (1 - width)).sum() / len(width) ** 2
            saved = gone * self._narrow.rest + (1 - square) * self._narrow.square
        return self._rest - saved + (layers * owned).sum() + (stays * units).sum()
