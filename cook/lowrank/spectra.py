"""The spectra of a model's matrices, one by one, by each of the methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.lowrank import factors
from cook.lowrank.factors import Spectrum
from cook.lowrank.fisher import row_information
from cook.model.arch.anatomy import Anatomy
from cook.model.calibration.input_statistics import Kind
from cook.model.calibration.layer_inputs import walk
from cook.model.calibration.statistics import Gram, OutputGram, Statistic
from cook.model.nn.linear import matrix, shape

Examples = Callable[[], Iterable[Mapping[str, Tensor]]]


class Spectra:
    """Walks through the targets; what has been yielded may be changed before the next is asked for.

    With method `data` each layer is looked at with what the layers before it give by then.

    Args:
        anatomy: of the model.
        method: data, fisher or svd.
        names: the linear layers.
        examples: calibration batches, the same at every call; with labels for `fisher`.
        dtype: that Gram matrices are summed in.
        rough: fewer tokens than a layer has inputs will do.

    Attributes:
        tokens_of: by target, with `data`: the valid tokens of the examples.
        jitter: the largest that a Gram matrix needed.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        method: str,
        names: Sequence[str],
        examples: Examples,
        dtype: torch.dtype,
        *,
        rough: bool = False,
    ):
        self._anatomy, self._method, self._names = anatomy, method, list(names)
        self._examples, self._dtype, self._rough = examples, dtype, rough
        self._information: dict[str, Tensor] | None = None
        self.tokens_of: dict[str, int] = {}
        self.jitter = 0.0

    def __iter__(self) -> Iterator[tuple[str, Spectrum]]:
        """Each target's name and spectrum; all of them, in the order in which they can be changed.

        Raises:
            CookError: there are too few examples, or what they give says nothing.
        """
        if self._method == "data":
            yield from self._seen()
            return
        if self._method == "fisher" and self._information is None:
            # Of the whole model: what was changed on the way would have other gradients.
            self._information = row_information(self._anatomy.model, self._labelled(), self._names)
        for name in self._names:
            weight = matrix(self._anatomy.model.get_submodule(name)).detach()
            if self._information is None:
                yield name, _named(name, factors.svd, weight)
            else:
                yield name, _named(name, factors.fisher, weight, self._information[name])

    def _seen(self) -> Iterator[tuple[str, Spectrum]]:
        model = self._anatomy.model
        own: dict[str, Kind] = {}
        for name in self._names:
            module = model.get_submodule(name)
            out, columns = shape(module)
            if columns > out:
                # Its outputs say as much, in a smaller matrix.
                own[name] = partial(_outputs, module, self._dtype)
        gram = partial(_gram, self._dtype)
        for found in walk(self._anatomy, self._examples, self._names, gram, own):
            for name, statistic in found.items():
                module = model.get_submodule(name)
                self._check(name, shape(module)[1], statistic)
                weight = matrix(module).detach()
                if isinstance(statistic, OutputGram):
                    spectrum = _named(
                        name, factors.data_of_outputs, weight, statistic.value, statistic.squares
                    )
                else:
                    spectrum = _named(name, factors.data, weight, statistic.value)
                self.jitter = max(self.jitter, spectrum.jitter)
                yield name, spectrum

    def _check(self, name: str, width: int, found: Statistic) -> None:
        self.tokens_of[name] = found.tokens
        if found.tokens < width and not self._rough:
            raise CookError(
                f"found {found.tokens} calibration tokens for the {width} inputs of {name},"
                f" expected {width:,} at least",
                hint="raise rows, give more or longer calibration examples, or exclude it",
            )

    def _labelled(self) -> Iterator[Mapping[str, Tensor]]:
        for batch in self._examples():
            if "labels" not in batch:
                raise CookError(
                    "the calibration examples have no labels, so there is no loss to differentiate",
                    hint="give them labels, or use method: data",
                )
            yield batch


def _gram(dtype: torch.dtype, width: int, device: torch.device) -> Gram:
    return Gram(width, device, dtype)


def _outputs(module: nn.Module, dtype: torch.dtype, _: int, device: torch.device) -> OutputGram:
    return OutputGram(module, device, dtype)


def _named(name: str, method: Callable[..., Spectrum], *given: Any) -> Spectrum:
    try:
        return method(*given)
    except ValueError as error:
        raise CookError(f"{name}: {error}", hint=f"exclude: [{name}]") from error
