"""Pruning in one shot from calibration examples, layer by layer on the inputs of what is already pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.targets import within
from cook.model.calibration.hessian import DAMPING, inverse_factor
from cook.model.calibration.layerwise import Layerwise
from cook.model.calibration.statistics import Gram, SquaredNorms
from cook.model.nn.linear import is_transposed, matrix
from cook.prune.weights.pattern import pattern_mask
from cook.prune.weights.sparsegpt import sparsegpt
from cook.prune.weights.wanda import row_masks, wanda_scores


@dataclass
class OneShot:
    """How to prune, and what was seen on the way.

    Args:
        method: wanda or sparsegpt.
        sparsity: of each row (wanda) or each matrix (sparsegpt).
        pattern: (N, M) in its place.

    Attributes:
        tokens: valid tokens of the calibration examples.
        damping: the largest share of the mean diagonal that a Hessian needed.
    """

    method: str
    sparsity: float
    pattern: tuple[int, int] | None = None
    tokens: int = 0
    damping: float = DAMPING

    def masks(
        self,
        anatomy: Anatomy,
        targets: Sequence[str],
        batches: Iterable[Mapping[str, Tensor]],
        leaving: Callable[[nn.Module], Tensor | None] = lambda _: None,
    ) -> Iterator[tuple[str, Tensor]]:
        """The targets in order, each with its mask, which has to be applied before the next is asked for.

        SparseGPT changes the weights that stay, in place.

        Args:
            targets: linear layers inside of the model's layers.
            leaving: what of a layer's weight [out, in] will leave the model, whole rows and columns: shares
                and patterns are of the rest, and it is kept.

        Yields:
            A target's name and a bool mask in its weight's own shape, True where kept.

        Raises:
            CookError: there are too few examples; `sparsegpt` needs as many tokens as a layer has inputs.
        """
        way = Layerwise(anatomy, batches)
        left = list(targets)
        for layer in way:
            inside = within(left, [layer])
            if inside:
                statistics: Mapping[str, Any] = way.statistics(inside, _KINDS[self.method])
                factors: dict[int, Tensor] = {}
                for name in inside:
                    module = anatomy.model.get_submodule(name)
                    self._check(name, statistics[name])
                    keep = self._keep(matrix(module), statistics[name], leaving(module), factors, name)
                    yield name, keep.t().contiguous() if is_transposed(module) else keep.contiguous()
            left = [name for name in left if name not in inside]
            if not left:
                return

    @torch.no_grad()
    def _keep(
        self, weight: Tensor, found: Any, leaving: Tensor | None, factors: dict[int, Tensor], name: str
    ) -> Tensor:
        """What a weight [out, in] keeps; sparsegpt changes the rest of it in place."""
        if leaving is None:
            return self._of(weight, found.value, factors, id(found), name)
        if bool(leaving.all()):
            return torch.ones_like(leaving)  # with its whole layer
        rows, columns = (~leaving).any(1).nonzero()[:, 0], (~leaving).any(0).nonzero()[:, 0]
        value = found.value[columns]
        value = value[:, columns] if value.ndim == 2 else value
        rest = weight[rows][:, columns]
        kept = self._of(rest, value, {}, id(found), name)
        keep = torch.ones_like(weight, dtype=torch.bool)
        keep[rows[:, None], columns] = kept
        weight[rows[:, None], columns] = rest
        return keep

    def _of(self, weight: Tensor, value: Tensor, factors: dict[int, Tensor], key: int, name: str) -> Tensor:
        if self.method == "wanda":
            scores = wanda_scores(weight, value)
            return pattern_mask(scores, *self.pattern) if self.pattern else row_masks(scores, self.sparsity)
        # Queries, keys and values share their inputs, and so the factor.
        if key not in factors:
            factors.clear()
            try:
                factors[key], damping = inverse_factor(value)
            except ValueError as error:
                raise CookError(f"{name}: {error}", hint=f"exclude: [{name}]") from error
            self.damping = max(self.damping, damping)
        new, keep = sparsegpt(weight, factors[key], sparsity=self.sparsity, pattern=self.pattern)
        weight.copy_(new)
        return keep

    def _check(self, name: str, found: Any) -> None:
        self.tokens = max(self.tokens, found.tokens)
        least = len(found.value) if self.method == "sparsegpt" else 1
        if found.tokens < least:
            raise CookError(
                f"found {found.tokens} calibration tokens for the {len(found.value)} inputs of {name},"
                f" expected {least:,} at least",
                hint="raise rows, or give more or longer calibration examples",
            )


_KINDS: dict[str, Any] = {"wanda": SquaredNorms, "sparsegpt": Gram}
