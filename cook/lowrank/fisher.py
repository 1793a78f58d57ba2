"""How much each row of a linear layer matters to the loss: its Fisher information, from examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.calibration.slopes import slopes
from cook.model.calibration.statistics import loss_shares
from cook.model.nn.linear import matrix, shape
from cook.model.probe.batch import examples_in, take


def row_squares(inputs: Tensor, slopes: Tensor) -> Tensor:
    """The squared norm of each row of each example's own gradient, [examples, out].

    An example's gradient of row o is `sum_t g_to x_t`, and its square `sum_ts g_to g_so (x_t . x_s)`: no
    gradient of the size of the weight is made.

    Args:
        inputs: [examples, tokens, in], of a linear layer.
        slopes: [examples, tokens, out], of each example's own loss, of what the layer gives.
    """
    alike = inputs @ inputs.transpose(1, 2)
    return (slopes * (alike @ slopes)).sum(1)


def row_information(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], targets: Sequence[str]
) -> dict[str, Tensor]:
    """The Fisher information of each row: the mean over examples of squared gradients, summed over the row.

    Of each example's own loss, in eval mode; one backward of a batch gives them all. A layer that runs
    several times counts with the sum of its gradients.

    Args:
        model: returns the mean loss over a batch's labels.
        batches: inputs with labels, on the model's device.
        targets: linear layers.

    Returns:
        By target, [out] in float32.
    """
    found: dict[str, Tensor] = {}
    for name in targets:
        module = model.get_submodule(name)
        found[name] = torch.zeros(shape(module)[0], device=matrix(module).device)
    examples = 0
    uses: dict[str, _Uses] = {}

    def add(batch: Mapping[str, Tensor]) -> None:
        size = examples_in(batch)
        # Only when all is well: what one layer cannot tell apart is asked for again.
        uses.update({name: _Uses(torch.zeros_like(total), size) for name, total in found.items()})
        outputs: Any = model(**batch)
        share = loss_shares(model, batch, size, outputs)
        for each in uses.values():
            each.share = share
        back(outputs.loss)
        for name, each in uses.items():
            found[name] += each.total

    with slopes(model, targets, lambda name, *given: uses[name].add(*given)) as back:
        for batch in batches:
            try:
                add(batch)
            except _AlikeError:
                for row in range(examples_in(batch)):
                    add(take(batch, slice(row, row + 1)))
            examples += examples_in(batch)
    if not examples:
        raise CookError("there are no calibration examples to look at", hint="give some batches")
    return {name: total / examples for name, total in found.items()}


class _AlikeError(Exception):
    """A layer gets something that all examples of a batch share: their gradients cannot be told apart."""


@dataclass
class _Uses:
    """What one layer gets in a forward, until the gradients of all that it gave are there.

    Attributes:
        total: [out], what is added to.
        size: examples of the batch.
        share: [examples], what each example's own loss counts in the batch's; set after the forward.
    """

    total: Tensor
    size: int
    share: Tensor = field(default_factory=lambda: torch.empty(0))
    inputs: list[Tensor] = field(default_factory=list)
    slopes: dict[int, Tensor] = field(default_factory=dict)

    def add(self, given: Tensor, output: Tensor) -> None:
        number, size = len(self.inputs), self.size
        # Some FFNs lay all tokens in a row, and a head gets one token of each example. What is alone has all.
        if size > 1 and len(given) != size and (given.ndim > 2 or len(given) % size):
            raise _AlikeError
        self.inputs.append(given)
        output.register_hook(self._slope(number))

    def _slope(self, number: int) -> Callable[[Tensor], None]:
        def hook(slope: Tensor) -> None:
            self.slopes[number] = slope.detach()
            if len(self.slopes) == len(self.inputs):
                self._add()

        return hook

    def _add(self) -> None:
        size = self.size
        inputs = torch.cat([each.reshape(size, -1, each.shape[-1]) for each in self.inputs], 1).float()
        numbers = range(len(self.inputs))
        slopes = torch.cat(
            [self.slopes[number].reshape(size, -1, self.slopes[number].shape[-1]) for number in numbers], 1
        ).float()
        self.total += row_squares(inputs, slopes / self.share.to(slopes)[:, None, None]).sum(0)
        self.inputs.clear()
        self.slopes.clear()
