"""Layer pruning: some of the layers are left out from the start (LayerDrop's pruning, ShortGPT's choice)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cook.errors import CookError
from cook.model.edits.depth import beyond, droppable, matrices, skips
from cook.model.nn import surgery
from cook.model.nn.hooks import Hooks
from cook.model.nn.skipped import Skipped
from cook.model.probe.measure import evaluating
from cook.passes import Effect, Pass, register
from cook.prune.specs.passes import LayersSpec

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy


def chosen(layers: int, count: int, choose: str) -> list[int]:
    """The numbers of the `count` layers that stay of so many.

    Args:
        choose: `top` drops the last ones, `bottom` the first ones, `alternate` every k-th one and never
            the last (A. Fan et al. 2020, H. Sajjad et al. 2023).

    >>> chosen(6, 3, "alternate")
    [1, 3, 5]
    """
    if choose == "top":
        return list(range(count))
    if choose == "bottom":
        return list(range(layers - count, layers))
    if choose == "alternate":
        return [(index + 1) * layers // count - 1 for index in range(count)]
    raise ValueError(f"no choice {choose!r}; there are top, bottom and alternate")


@torch.no_grad()
def block_influence(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], layers: Iterable[str]
) -> list[float]:
    """How far each layer turns its input, `1 - E[cos(x_in, x_out)]` over all valid tokens.

    X. Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024,
    equation 1.

    Args:
        model: runs in eval mode.
        batches: inputs, on the model's device; tokens that `attention_mask` leaves out do not count.
        layers: names of the modules.
    """
    names = list(layers)
    sums, tokens = torch.zeros(len(names), dtype=torch.float64), 0
    for batch in batches:
        mask = batch.get("attention_mask")
        cosines: dict[int, Tensor] = {}
        hooks = Hooks()
        for number, name in enumerate(names):
            hooks.forward(model.get_submodule(name), partial(_compare, cosines, number), named=True)
        try:
            with evaluating(model):
                model(**{key: value for key, value in batch.items() if key != "labels"})
        finally:
            hooks.close()
        # Of images every patch counts, and of texts what is no padding.
        valid = torch.ones_like(cosines[0], dtype=torch.bool)
        if mask is not None and mask.shape == valid.shape:
            valid = mask.bool()
        sums += torch.stack([(1 - cosines[n])[valid].double().sum().cpu() for n in range(len(names))])
        tokens += int(valid.sum())
    if not tokens:
        raise CookError("there are no calibration tokens to look at", hint="give some examples")
    if not bool(sums.isfinite().all()):
        message = "what the layers give is no finite number, which says nothing of their influence"
        raise CookError(message, hint="look at the weights; or name layers by keep")
    return (sums / tokens).tolist()


def _compare(
    cosines: dict[int, Tensor], number: int, _: nn.Module, given: Any, named: Any, output: Any
) -> None:
    inner = given[0] if given else named["hidden_states"]
    outer = output if isinstance(output, Tensor) else output[0]
    cosines[number] = functional.cosine_similarity(inner.float(), outer.float(), dim=-1)


SHOWN = 12
"""Layers whose numbers a note lists."""


@register
class PruneLayers(LayersSpec, Pass):
    """Removes layers; layer numbers in a recipe refer to the model as it was loaded."""

    def settled(self, done: int) -> bool:
        """The layers are left out from the start."""
        return True

    def plan(self, anatomy: Anatomy) -> Effect:
        layers = droppable(anatomy)
        # Which ones turn their input least is found on data; layers of one stack are equally large.
        count = self._count(anatomy) if self.wants() else 0
        kept = chosen(len(layers), count, "top") if count else self._kept(anatomy, layers)
        gone = [layer for number, layer in enumerate(layers) if number not in kept]
        which = "chosen by influence" if self.wants() else f"{', '.join(map(str, kept))} stay"
        return Effect(
            parameters=matrices(anatomy.model, gone),
            edits=skips(anatomy, gone),
            claims=frozenset({"layers"}),
            note=f"{len(gone)} of {len(layers)} layers are left out, {which}",
        )

    def attach(self, context: Context) -> None:
        anatomy = context.anatomy
        layers = droppable(anatomy)
        self.influence: list[float] | None = None
        if self.wants():
            examples = context.examples(self.options.rows)
            try:
                found = block_influence(context.model, examples, layers)
            except CookError as error:
                raise self.error(error.message, option="count", hint=error.hint) from error
            influence = context.agreed(torch.tensor(found))
            self.influence = influence.tolist()
            most = influence.argsort(descending=True, stable=True)[: self._count(anatomy)]
            self.kept = sorted(most.tolist())
        else:
            self.kept = self._kept(anatomy, layers)
        gone = [layer for number, layer in enumerate(layers) if number not in self.kept]
        context.removal.remove_layers(gone)
        self.whole = len(layers)

    def facts(self, context: Context) -> dict[str, Any]:
        layers = [surgery.get(context.model, layer) for layer in context.anatomy.layers]
        left = [number for number, layer in enumerate(layers) if not isinstance(layer, Skipped)]
        self.check_measured("layers", left, self.kept)
        found: dict[str, Any] = {"kept": self.kept, "of": self.whole}
        found["note"] = f"{self.whole - len(self.kept)} of {self.whole} layers removed"
        if len(self.kept) <= SHOWN:
            found["note"] += f"; layers {', '.join(map(str, self.kept))} stay"
        return found if self.influence is None else {**found, "influence": self.influence}

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if list(state["kept"]) != self.kept:
            raise self.error(
                f"kept layers {self.kept} now and {list(state['kept'])} before the interrupt",
                hint="start the run anew",
            )

    def _kept(self, anatomy: Anatomy, layers: list[str]) -> list[int]:
        if self.options.keep is None:
            return chosen(len(layers), self._count(anatomy), self.options.choose)
        if message := beyond(self.options.keep, len(layers)):
            raise self.error(message, option="keep")
        kept = [number % len(layers) for number in self.options.keep]
        if kept != sorted(set(kept)):
            hint = "name each layer once, in increasing order"
            raise self.error(f"{self.options.keep} does not increase", option="keep", hint=hint)
        for stack in {id(each): each for each in anatomy.stacks.values()}.values():
            own = [number for number, layer in enumerate(layers) if anatomy.stacks[layer] is stack]
            if not set(own) & set(kept):
                message = f"no layer would be left of {own[0]} to {own[-1]}"
                raise self.error(message, option="keep", hint=f"keep one of {stack.layers} at least")
        if len(kept) == len(layers):
            raise self.error(f"all {len(layers)} layers stay", option="keep", hint="leave the pass out")
        return kept

    def _count(self, anatomy: Anatomy) -> int:
        count, layers = self.options.count, len(anatomy.layers)
        if anatomy.mixed:
            hint = "name them: keep counts from the encoder's first to the decoder's last"
            raise self.error("the model has layers of several kinds", option="count", hint=hint)
        assert count is not None
        if count >= layers:
            message = f"{count} layers would stay, the model has {layers}"
            raise self.error(message, option="count", hint=f"at most {layers - 1}")
        return count
