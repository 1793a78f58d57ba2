"""Calibration examples on their way through a model, one transformer layer after another.

    way = Layerwise(anatomy, session.examples(128))
    for layer in way:
        found = way.statistics(targets_in(layer), Gram)     of the inputs of its linear layers
        ...                                                 change the layer

Each layer is met with what the layers before it give *now*, after they were changed. What is kept is what
enters one layer: examples x tokens x width numbers, and the sums of that layer's statistics. A layer runs
twice, once for the statistics and once, changed, for the next one's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.anatomy import Anatomy
from cook.model.hooks import Hooks
from cook.model.linear import shape
from cook.model.measure import evaluating
from cook.model.statistics import Statistic

S = TypeVar("S", bound=Statistic)


class _Enough(BaseException):
    """Ends a forward whose rest nobody needs; no error, so no `except Exception` on the way takes it."""


@dataclass
class _Call:
    """One batch in front of a layer.

    Attributes:
        hidden: [batch, tokens, width], what the layer before gave.
        given: the other arguments of each layer, by its number, or those of all of them.
        valid: which tokens are no padding, bool [batch, tokens]; None: all.
    """

    hidden: Tensor
    given: list[tuple[tuple[Any, ...], dict[str, Any]]]
    valid: Tensor | None

    def arguments(self, layer: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest, named = self.given[layer if len(self.given) > 1 else 0]
        return (self.hidden, *rest), named


@dataclass
class _Shared:
    """Statistics of a layer in the making; targets that get the same tensor share one."""

    found: dict[str, Any] = field(default_factory=dict)
    added: list[tuple[Tensor, Any]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)


class Layerwise:
    """The inputs of a model's layers over calibration examples, in eval mode and without gradients.

    Args:
        anatomy: of the model; its family has to be known.
        batches: as the model takes them; `attention_mask` [batch, tokens] tells padding, which no statistic
            counts.

    Raises:
        CookError: there are no examples, or the layers are not run one after another, each once; a decoder
            after an encoder, whose layers get what no layer before them gave.
    """

    def __init__(self, anatomy: Anatomy, batches: Iterable[Mapping[str, Tensor]]):
        if anatomy.mixed:
            raise CookError(
                f"a {anatomy.kind} model has an encoder and a decoder, and is not seen layer by layer yet",
                hint="use a method that looks at no examples, such as magnitude",
            )
        self._model = anatomy.model
        self._names = anatomy.layers
        self._layers = [self._model.get_submodule(name) for name in self._names]
        self._calls: list[_Call] = []
        self._at = 0
        self._record(batches)
        if not self._calls:
            raise CookError("there are no calibration examples to look at", hint="give some batches")

    def __iter__(self) -> Iterator[str]:
        """The name of each layer, when its inputs are those that the layers before it give."""
        for number, name in enumerate(self._names):
            self._at = number
            yield name
            if self._at + 1 < len(self._names):
                self._advance()

    @torch.no_grad()
    def statistics(self, targets: Sequence[str], kind: Callable[[int, torch.device], S]) -> dict[str, S]:
        """A statistic of the inputs of each target, over all valid tokens.

        Args:
            targets: linear layers inside of the present layer.
            kind: makes an empty one for inputs of a width.

        Returns:
            By target. Targets that get the same tensor (queries, keys and values) have the same statistic.

        Raises:
            CookError: a target was not run, or gets other tokens than the layer.
        """
        state, hooks = _Shared(), Hooks()
        last: str | None = None
        valid: Tensor | None = None

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                state.order.append(name)
                self._add(state, name, module, inputs[0], valid, kind)
                if name == last:
                    raise _Enough

            return before

        try:
            for name in targets:
                hooks.forward_pre(self._model.get_submodule(name), hook(name))
            with evaluating(self._model):
                for call in self._calls:
                    state.added.clear()
                    state.order.clear()
                    valid = call.valid
                    with suppress(_Enough):
                        self._run(call)
                    # What comes behind the last of them need not run, if each runs once.
                    last = state.order[-1] if sorted(state.order) == sorted(targets) else None
        finally:
            hooks.close()
        if missing := [name for name in targets if name not in state.found]:
            raise CookError(f"{missing[0]} is not run by its layer", hint=f"exclude: [{missing[0]}]")
        return state.found

    @torch.no_grad()
    def _record(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Keep what enters the first layer, and what every layer gets beside it."""
        config = getattr(self._model, "config", None)
        caches, alike = getattr(config, "use_cache", None), False
        try:
            if caches:
                config.use_cache = False  # type: ignore[union-attr]  # a cache would grow with every run
            with evaluating(self._model):
                for batch in batches:
                    met = self._meet(batch, self._layers[:1] if alike else self._layers)
                    given = [(rest, named) for _, rest, named in met]
                    alike = alike or all(_same(given[0], other) for other in given[1:])
                    given = given[:1] if alike else given
                    self._calls.append(_Call(met[0][0], given, _valid(batch)))
        finally:
            if caches:
                config.use_cache = caches  # type: ignore[union-attr]

    def _meet(self, batch: Mapping[str, Tensor], layers: Sequence[nn.Module]) -> list[Any]:
        """(hidden states, other arguments, named ones) of each layer; the forward ends before the last."""
        met: list[Any] = []
        order: list[nn.Module] = []

        def before(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            rest = dict(named)
            hidden = arguments[0] if arguments else rest.pop("hidden_states")
            # Only the first layer's hidden states are needed; the others are there again later.
            met.append((None if met else hidden, arguments[1:], rest))
            order.append(module)
            if module is layers[-1]:
                raise _Enough

        hooks = Hooks()
        try:
            for layer in dict.fromkeys(layers):
                hooks.forward_pre(layer, before, named=True)
            with suppress(_Enough):
                self._model(**batch)
        finally:
            hooks.close()
        if order != list(layers):
            raise CookError("the layers of this model are not run one after another, each once")
        return met

    def _run(self, call: _Call) -> Any:
        arguments, named = call.arguments(self._at)
        return self._layers[self._at](*arguments, **named)

    @torch.no_grad()
    def _advance(self) -> None:
        """Through the present layer, as it is now."""
        with evaluating(self._model):
            for call in self._calls:
                output = self._run(call)
                call.hidden = output if isinstance(output, Tensor) else output[0]

    def _add(
        self,
        state: _Shared,
        name: str,
        module: nn.Module,
        inputs: Tensor,
        valid: Tensor | None,
        kind: Callable[[int, torch.device], S],
    ) -> None:
        same = next((statistic for tensor, statistic in state.added if tensor is inputs), None)
        if name not in state.found:
            state.found[name] = kind(shape(module)[1], inputs.device) if same is None else same
        statistic = state.found[name]
        if same is statistic:
            return
        state.added.append((inputs, statistic))
        flat = inputs.flatten(0, -2)
        if valid is not None:
            if len(flat) != valid.numel():
                raise CookError(
                    f"{name} gets {len(flat)} tokens where the layer has {valid.numel()}: which are padding?",
                    hint=f"exclude: [{name}]",
                )
            flat = flat[valid.flatten()]
        statistic.add(flat)


def _valid(batch: Mapping[str, Tensor]) -> Tensor | None:
    mask = batch.get("attention_mask")
    if mask is None or bool(mask.all()):
        return None
    if mask.ndim != 2:
        found = " x ".join(map(str, mask.shape))
        raise CookError(
            f"found an attention_mask of {found}, expected [examples, tokens]",
            where="calibration",
            hint="padding is told by it",
        )
    return mask.bool()


def _same(one: Any, other: Any) -> bool:
    """Whether two layers' arguments are the same objects, or equal plain values."""
    if one is other:
        return True
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    plain = (bool, int, float, str)
    return isinstance(one, plain) and isinstance(other, plain) and one == other
