"""Runs calibration examples through a model one transformer layer at a time.

    way = Layerwise(anatomy, session.examples(128))
    for layer in way:
        found = way.statistics(targets_in(layer), Gram)     of the inputs of its linear layers
        ...                                                 change the layer

Each layer is run on the outputs of the layers before it *after* their change. Only one layer's inputs are
kept: examples x tokens x width numbers, and the sums of that layer's statistics. A layer runs twice: once
for the statistics and once, changed, for the next layer's inputs. A decoder after an encoder starts from
the outputs of the changed encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.calibration.input_statistics import InputStatistics, Kind, answered_tokens, valid_tokens
from cook.model.calibration.statistics import Statistic
from cook.model.nn.composite import whole
from cook.model.nn.hooks import Hooks
from cook.model.probe.measure import evaluating

S = TypeVar("S", bound=Statistic)


class _Enough(BaseException):
    """Ends a forward early; derives from BaseException so that no `except Exception` catches it."""


@dataclass
class _Call:
    """The inputs of a layer for one batch.

    Attributes:
        hidden: [batch, tokens, width], the output of the previous layer.
        given: the other arguments of each layer, by its number, or those common to all layers.
        valid: which tokens are not padding, bool [batch, tokens]; None: all.
        source: the same for the encoder's tokens, in a decoder.
    """

    hidden: Tensor
    given: list[tuple[tuple[Any, ...], dict[str, Any]]]
    valid: Tensor | None
    source: Tensor | None = None

    def arguments(self, layer: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest, named = self.given[layer if len(self.given) > 1 else 0]
        return (self.hidden, *rest), named

    def valid_of(self, inputs: Tensor, layer: int) -> Tensor | None:
        """Which of a linear layer's inputs are not padding; encoder outputs are recognised by identity."""
        rest, named = self.arguments(layer)
        handed_on = any(inputs is each for each in (*rest[1:], *named.values()))
        return self.source if handed_on else self.valid


class Layerwise:
    """The inputs of a model's layers over calibration examples, in eval mode and without gradients.

    Args:
        anatomy: of the model; its family must be known.
        batches: model inputs; `attention_mask` [batch, tokens] marks padding, which is excluded from all
            statistics.

    Raises:
        CookError: there are no examples, or the layers are not run one after another, each once.
    """

    def __init__(self, anatomy: Anatomy, batches: Iterable[Mapping[str, Tensor]]):
        self._model = anatomy.model
        self._stacks = [
            list(names) for _, names in groupby(anatomy.layers, lambda name: id(anatomy.stacks[name]))
        ]
        # Needed again only by a decoder after an encoder.
        self._batches = list(batches) if len(self._stacks) > 1 else batches
        self._enter(0)
        if not self._calls:
            raise CookError("there are no calibration examples to look at", hint="give some batches")

    def __iter__(self) -> Iterator[str]:
        """Yield the name of each layer once its inputs are the outputs of the layers before it."""
        for number, names in enumerate(self._stacks):
            if number:
                self._enter(number)
            for self._at, name in enumerate(names):
                yield name
                if name != names[-1]:
                    self._advance()

    def _enter(self, stack: int) -> None:
        """Start at the first layer of a stack."""
        self._layers = [self._model.get_submodule(name) for name in self._stacks[stack]]
        self._calls: list[_Call] = []
        self._at = 0
        self._record(self._batches, decodes=stack > 0)

    @torch.no_grad()
    def statistics(
        self,
        targets: Sequence[str],
        kind: Callable[[int, torch.device], S],
        own: Mapping[str, Kind] | None = None,
    ) -> dict[str, S]:
        """Compute a statistic of the inputs of each target, over all valid tokens.

        Args:
            targets: linear layers inside the current layer.
            kind: creates an empty statistic for inputs of a given width.
            own: other kinds, by target; these statistics are not shared.

        Returns:
            Statistics by target. Targets with the same input tensor (queries, keys and values) share one.

        Raises:
            CookError: a target was not run, or its inputs have other tokens than the layer.
        """
        state, hooks = InputStatistics(kind, own or {}), Hooks()
        order: list[str] = []
        last: str | None = None
        call: _Call
        wholes = {name: whole(self._model, name) for name in targets}
        entered: dict[str, Tensor] = {}

        def enter(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                entered[name] = inputs[0]

            return before

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                order.append(name)
                # A second factor reads the first one's output: its tokens are those of the composite.
                valid = call.valid_of(entered.get(wholes[name], inputs[0]), self._at)
                state.add(name, module, inputs[0], valid)
                if name == last:
                    raise _Enough

            return before

        try:
            for name in sorted({each for name, each in wholes.items() if each != name}):
                hooks.forward_pre(self._model.get_submodule(name), enter(name))
            for name in targets:
                hooks.forward_pre(self._model.get_submodule(name), hook(name))
            with evaluating(self._model):
                for call in self._calls:
                    state.added.clear()
                    order.clear()
                    entered.clear()
                    with suppress(_Enough):
                        self._run(call)
                    # Modules after the last target need not run, if each target runs once.
                    last = order[-1] if sorted(order) == sorted(targets) else None
        finally:
            hooks.close()
        if missing := [name for name in targets if name not in state.found]:
            raise CookError(f"{missing[0]} is not run by its layer", hint=f"exclude: [{missing[0]}]")
        return state.found

    @torch.no_grad()
    def _record(self, batches: Iterable[Mapping[str, Tensor]], decodes: bool) -> None:
        """Record the first layer's inputs, and the other arguments of every layer.

        Args:
            decodes: whether the layers are those of a decoder after an encoder.
        """
        alike, mixed = False, _mixed(self._model)
        with _without_cache(self._model), evaluating(self._model):
            for batch in batches:
                calls = self._record_calls(batch, self._layers[:1] if alike else self._layers)
                given = [(rest, named) for _, rest, named in calls]
                alike = alike or (not mixed and all(_same(given[0], other) for other in given[1:]))
                given = given[:1] if alike else given
                source = valid_tokens(batch)
                valid = answered_tokens(batch) if decodes else source
                self._calls.append(_Call(calls[0][0], given, valid, source))

    def _record_calls(self, batch: Mapping[str, Tensor], layers: Sequence[nn.Module]) -> list[Any]:
        """(hidden states, other arguments, named ones) of each layer; the forward stops before the last."""
        calls: list[Any] = []
        order: list[nn.Module] = []

        def before(module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            rest = dict(named)
            hidden = arguments[0] if arguments else rest.pop("hidden_states")
            # Only the first layer's hidden states are needed; the others are recomputed later.
            calls.append((None if calls else hidden, arguments[1:], rest))
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
        return calls

    def _run(self, call: _Call) -> Any:
        arguments, named = call.arguments(self._at)
        return self._layers[self._at](*arguments, **named)

    @torch.no_grad()
    def _advance(self) -> None:
        """Run the current layer in its present state and keep its outputs."""
        with evaluating(self._model):
            for call in self._calls:
                output = self._run(call)
                call.hidden = output if isinstance(output, Tensor) else output[0]


def _mixed(model: nn.Module) -> bool:
    """Whether layers use different attention masks, which an unpadded batch shorter than a window hides."""
    config: Any = getattr(model, "config", None)
    kinds = getattr(config.get_text_config(), "layer_types", None) if config is not None else None
    return len(set(kinds or ())) > 1


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Disable the key-value cache in the context; it would grow with every run of a layer."""
    # Submodules may have a copy of the config.
    configs = {id(config): config for each in model.modules() if (config := getattr(each, "config", None))}
    caching = [config for config in configs.values() if getattr(config, "use_cache", None)]
    try:
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True


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
