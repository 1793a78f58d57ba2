"""L0 gates: what each layer, head or neuron gives is multiplied with a number that learns to be 0 or 1.

C. Louizos, M. Welling, D. Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018:
the hard concrete distribution. M. Xia, Z. Zhong, D. Chen, "Structured Pruning Learns Compact and Accurate
Models", ACL 2022 (CoFi): gates of several sizes at once, and a Lagrangian that leads their cost to a goal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cook.prune.cost import Cost

LOW, HIGH = -0.1, 1.1
"""What the concrete distribution is stretched to before it is cut to 0 and 1."""
TEMPERATURE = 2 / 3
OPEN = 3.0
"""Where all gates begin: one in a hundred is shut, and in evaluations all are open."""
BOUND = math.log(100)
"""How far a gate goes to either side: it can come back (as Louizos et al. bound it)."""
FIRST, SECOND = 3.0, 60.0
"""How much faster than the gates the two multipliers learn."""


def hard_concrete(loga: Tensor, noise: Tensor | None = None) -> Tensor:
    """Gates from 0 to 1, many of them exactly 0 or 1 (Louizos et al. 2018, equations 10 to 12).

    Args:
        loga: how open each is; from minus to plus infinity, any shape.
        noise: uniform from 0 to 1, in its shape. None for evaluations, which take
            `clamp(1.2 * sigmoid(loga) - 0.1, 0, 1)` (equation 13).
    """
    open_ = loga if noise is None else (noise.logit() + loga) / TEMPERATURE
    return (torch.sigmoid(open_) * (HIGH - LOW) + LOW).clamp(0, 1)


def probabilities(loga: Tensor) -> Tensor:
    """How probable it is that a gate is not 0 (Louizos et al. 2018, equation 12)."""
    return torch.sigmoid(loga - TEMPERATURE * math.log(-LOW / HIGH))


def uniform(count: int, *key: int) -> Tensor:
    """So many numbers between 0 and 1, float64; the same for the same key, whatever else is drawn."""
    drawn = np.random.default_rng(key).random(count)
    return torch.from_numpy(drawn).clamp(1e-6, 1 - 1e-6)


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


def lagrangian(over: Tensor, multipliers: Tensor) -> Tensor:
    """`l1 * over + l2 * over^2`, which gates descend and multipliers ascend (CoFi, section 2.3).

    Args:
        over: by how much the cost exceeds its target, a scalar.
        multipliers: l1 and l2, whose gradients come negated.
    """
    first, second = 2 * multipliers.detach() - multipliers
    return first * over + second * over.square()


class Gates(nn.Module):
    """All gates of a model in one vector, layers first, and the multipliers: what is trained.

    An optimizer such as Adam moves all that it trains by about the learning rate, which is too little for
    gates that have to close in some hundred steps: they learn `speed` times as fast, under any optimizer.

    Args:
        sizes: how many gates belong together: all layers, then each attention and FFN that has gates, then
            the residual stream.
    """

    def __init__(self, sizes: Sequence[int], *, dtype: torch.dtype | None = None, device: Any = None):
        super().__init__()
        self.sizes = list(sizes)
        self.speed = 1.0
        # Vectors: an optimizer that lets matrices decay leaves them.
        self.moved = nn.Parameter(torch.zeros(sum(sizes), dtype=dtype, device=device))
        self.pressed = nn.Parameter(torch.zeros(2, dtype=dtype, device=device))

    @property
    def loga(self) -> Tensor:
        """How open each gate is; its gradient is the parameter's as it is."""
        return OPEN + self.moved + (self.speed - 1) * self.moved.detach()

    @property
    def multipliers(self) -> Tensor:
        """l1 and l2; their gradients too."""
        speeds = self.speed * self.pressed.new_tensor([FIRST, SECOND])
        return self.pressed + (speeds - 1) * self.pressed.detach()

    def split(self, values: Tensor) -> list[Tensor]:
        """A vector over all gates by what belongs together."""
        return list(values.split(self.sizes))

    @torch.no_grad()
    def bound(self) -> None:
        """Bring back gates that went too far to come back by themselves."""
        self.moved.clamp_((-BOUND - OPEN) / self.speed, (BOUND - OPEN) / self.speed)
