"""Tests the removal of units in a family without an entry before it is done, since only its names are known.

Modules named as in Llama may still compute something else with their heads. So the outputs of the model
with some units masked to zero are compared with those of the model without them, on a small example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.families import FAMILIES
from cook.model.arch.units import UnitGroup, masks, owned
from cook.model.edits.removal import remove
from cook.model.nn import surgery
from cook.model.nn.hooks import Hooks
from cook.model.probe.equivalence import outputs
from cook.model.probe.example import FAILURES, Unmeasured, random_examples

FAR = 1e-3
"""The tolerance of an output, relative to the largest one; a wrong cut changes it by about its size."""

Batch = Mapping[str, Tensor]
Given = dict[str, Tensor]


def prove(
    anatomy: Anatomy, several: Sequence[UnitGroup], batches: Callable[[], Iterator[Batch]] | None = None
) -> None:
    """Remove every other unit of the first and the last group of each kind, compare, and restore them.

    Families with an entry are skipped: the shared tests cover them. On the meta device only shapes are
    compared. Of a model with weights only the units' parameters are copied, one group after the other.

    Args:
        several: the groups whose units may be removed.
        batches: yields inputs of the model, for models that do not run on random tokens or pixels.

    Raises:
        CookError: the model then fails, or its output differs from that with these units masked; or there
            is no example to compare on.
    """
    if anatomy.kind not in FAMILIES:
        Proof(anatomy, batches).try_out(several)


class Proof:
    """Compares a model's outputs on an example before and after the removal of units."""

    def __init__(self, anatomy: Anatomy, batches: Callable[[], Iterator[Batch]] | None = None):
        self.anatomy = anatomy
        self.model: Any = anatomy.model
        self._batches = batches
        self._example: Batch | None = None

    def try_out(self, several: Sequence[UnitGroup]) -> None:
        """Test one or two groups of each kind."""
        if self.example() is None:
            return
        kinds: dict[Any, list[UnitGroup]] = {}
        for each in several:
            if each.count > 1:
                kinds.setdefault(self._kind(each), []).append(each)
        for alike in kinds.values():
            for each in alike if len(alike) == 1 else (alike[0], alike[-1]):
                self._try(each)

    def example(self) -> Batch | None:
        """Inputs that the model runs on; None on the meta device if there are none.

        Raises:
            CookError: the model runs on no inputs that cook can create, and none were given.
        """
        if self._example is None:
            self._example = next((each for each in self._examples() if self._runs(each)), None)
        if self._example is None and not self._weightless:
            raise CookError(
                f"cook knows the parts of a {self.anatomy.kind!r} model by their names alone, and has no"
                " example to check on that taking some of them out is right",
                hint="give `calibration=`, some batches as the model takes them; in a recipe, data",
            )
        return self._example

    def _examples(self) -> Iterator[Batch]:
        with suppress(Unmeasured):
            yield from random_examples(self.model)
        if self._batches is not None and not self._weightless:
            yield from self._batches()

    @property
    def _weightless(self) -> bool:
        return any(each.is_meta for each in self.model.parameters())

    def _runs(self, example: Batch) -> bool:
        try:
            self._run(example, ())
        except FAILURES:
            return False
        return True

    @torch.no_grad()
    def _run(self, example: Batch, modules: Sequence[str]) -> Given:
        found: Given = {}
        hooks = Hooks()

        def keep(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    found[name] = output.detach()

            return hook

        try:
            for name in modules:
                hooks.forward(surgery.get(self.model, name), keep(name))
            whole = outputs(self.model, example)
        finally:
            hooks.close()
        every = {**found, **{f"output {name}": value for name, value in whole.items()}}
        return {name: value for name, value in every.items() if value.is_floating_point()}

    def _try(self, units: UnitGroup) -> None:
        example = self.example()
        assert example is not None
        keep = torch.arange(units.count) % 2 == 0
        modules = [part.module for part in units.outputs]
        with restored(self.model, units):
            with torch.no_grad():
                for name, mask in masks(self.model, units, keep):
                    self.model.get_parameter(name).mul_(mask)
            before = self._run(example, modules)
            remove(self.model, units, keep)
            try:
                after = self._run(example, modules)
            except FAILURES as failure:
                raise CookError(self._fails(units.kind, failure), hint=self._hint) from failure
        if found := moved(before, after):
            raise CookError(self._moves(units.kind, *found), hint=self._hint)

    def _kind(self, units: UnitGroup) -> Any:
        """The key under which groups count as the same kind."""
        modules = tuple(
            (part.module.removeprefix(units.layers[0]), part.axis, part.spans) for part in units.parts
        )
        layers = tuple(type(surgery.get(self.model, layer)) for layer in units.layers)
        return units.kind, units.count, units.heads, modules if len(layers) == 1 else units.layers, layers

    @property
    def _hint(self) -> str:
        return f"a family needs an entry for that; there are {', '.join(FAMILIES)}"

    def _fails(self, what: str, failure: Exception) -> str:
        reason = str(failure).strip().partition("\n")[0]
        return (
            f"a {self.anatomy.kind!r} model does not run without some of its {what}"
            f" ({type(failure).__name__}: {reason}): cook knows it by the names of its modules alone"
        )

    def _moves(self, what: str, where: str, far: float) -> str:
        return (
            f"without some of its {what} a {self.anatomy.kind!r} model gives something else than with these"
            f" at zero ({where} is {far:.0%} off): cook knows it by the names of its modules alone"
        )


def moved(before: Given, after: Given) -> tuple[str, float] | None:
    """The first output that differs, and by how much relative to its largest value."""
    for name, was in before.items():
        now = after.get(name)
        if now is None or now.shape != was.shape:
            return name, 1.0
        if was.is_meta or not was.numel():
            continue
        size = float(was.abs().max())
        far = float((now.float() - was.float()).abs().max()) / max(size, torch.finfo(torch.float32).tiny)
        allowed = max(FAR, 50 * torch.finfo(was.dtype).eps)
        if not far <= allowed:
            return name, far
    return None


@contextmanager
def restored(model: nn.Module, units: UnitGroup) -> Iterator[None]:
    """Restore the model's parameters and values when the context ends, whatever happens to these units.

    Only the parameters that these units own are copied.
    """
    inner = [source for each in model.modules() for source in vars(each).get("_source", ())]
    several = [*model.modules(), *inner]
    states = [(each, _state(each)) for each in several]
    values = {id(number): number for part in units.parts for _, number, _ in owned(model, part)}
    kept = [(number, number.detach().clone()) for number in values.values()]
    try:
        yield
    finally:
        for module, (own, changed) in states:
            vars(module).clear()
            vars(module).update(own)
            for config, changes in changed:
                config._changes.clear()
                config._changes.update(changes)
        with torch.no_grad():
            for number, value in kept:
                number.copy_(value)


def _state(module: nn.Module) -> tuple[dict[str, Any], list[tuple[Any, dict[str, int]]]]:
    own = {
        name: dict(value) if name in ("_parameters", "_buffers", "_modules") else value
        for name, value in vars(module).items()
    }
    configs = [value for value in own.values() if isinstance(value, surgery.Changed)]
    return own, [(config, dict(vars(config)["_changes"])) for config in configs]
