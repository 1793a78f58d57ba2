"""Declarations of the passes that remove heads, neurons and more, without heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from cook.passes import Conflict, Spec
from cook.prune.specs import goals
from cook.prune.specs.unit_options import HeadsOptions, NeuronsOptions, StructuredOptions, UnitsOptions

KINDS = ("layers", "heads", "neurons", "hidden")
"""What `prune.structured` may take away."""
_EXCLUDED = "`include` or `exclude` gives each layers of its own"
_SAME_HEADS = Conflict("both remove heads of the same layers", _EXCLUDED)
_SAME_NEURONS = Conflict("both remove neurons of the same layers", _EXCLUDED)


class StructureSpec(Spec):
    """The declaration of `Structure`."""

    phase = "structure"
    options: HeadsOptions | UnitsOptions

    def check(self) -> None:
        options = self.options
        if isinstance(options, HeadsOptions):
            if (options.sparsity is None) == (options.budget is None):
                hint = "write sparsity: 0.5, or budget: {macs: 0.5}"
                raise self.error("expected either a sparsity or a budget", option="sparsity", hint=hint)
            if options.normalize and options.scope == "layer":
                message = "means nothing with scope: layer, where scores are only compared within a layer"
                raise self.error(message, option="normalize", hint="leave it out")
        if options.budget is None:
            return
        goals.check(self, options.budget)
        if isinstance(options, HeadsOptions) and options.scope == "layer":
            message = "means nothing with a budget, for which all layers are compared"
            raise self.error(message, option="scope", hint="leave it out")

    def wants(self) -> frozenset[str]:
        looks = self.options.importance in ("gradient", "fisher")
        needed = frozenset({"calibration"}) if looks else frozenset()
        return needed if self.options.budget is None else needed | goals.wants(self.options.budget)


class HeadsSpec(StructureSpec):
    """The declaration of `PruneHeads`."""

    name = "prune.heads"
    summary = "remove the least important attention heads, which makes the model smaller and faster"
    Options = HeadsOptions
    options: HeadsOptions
    examples = (
        {"sparsity": 0.5},
        {"sparsity": 0.5, "importance": "magnitude", "scope": "layer"},
        {"sparsity": 0.25, "importance": "random", "schedule": "constant"},
        {"budget": {"macs": 0.9}, "normalize": True},
    )
    incompatible: ClassVar[Mapping[str, Conflict]] = {"prune.heads": _SAME_HEADS, "prune.units": _SAME_HEADS}


class NeuronsSpec(StructureSpec):
    """The declaration of `PruneNeurons`."""

    name = "prune.neurons"
    summary = "remove the least important FFN neurons, which makes the model smaller and faster"
    Options = NeuronsOptions
    options: NeuronsOptions
    examples = (
        {"sparsity": 0.5},
        {"sparsity": 0.3, "importance": "magnitude", "multiple": 1},
        {"sparsity": 0.25, "importance": "random", "scope": "layer", "multiple": 8},
        {"budget": {"parameters": 0.8}, "importance": "fisher"},
    )
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "prune.neurons": _SAME_NEURONS,
        "prune.units": _SAME_NEURONS,
    }


class UnitsSpec(StructureSpec):
    """The declaration of `PruneUnits`."""

    name = "prune.units"
    summary = "remove heads and neurons together for a budget of parameters, MACs or latency"
    Options = UnitsOptions
    options: UnitsOptions
    examples = (
        {"budget": {"macs": 0.6}},
        {"budget": {"parameters": 0.7}, "importance": "magnitude", "schedule": "constant"},
    )
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "prune.units": Conflict("both remove heads and neurons of the same layers", _EXCLUDED),
    }


class StructuredSpec(Spec):
    """The declaration of `PruneStructured`."""

    name = "prune.structured"
    summary = "learn which layers, heads, neurons and dimensions to remove for a budget (L0, CoFi)"
    phase = "structure"
    needs = frozenset({"training"})
    Options = StructuredOptions
    options: StructuredOptions
    examples = (
        {"budget": {"parameters": 0.7}},
        {"budget": {"macs": 0.6}, "gates": ["layers", "heads", "neurons"], "end": "50%"},
        {"budget": {"parameters": 0.7}, "gates": ["layers"], "speed": 100},
        {"budget": {"macs": 0.4}, "gates": ["heads", "neurons", "hidden"], "end": "50%"},
    )
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "prune.heads": Conflict("both decide which heads stay", "`gates` has no heads or layers"),
        "prune.neurons": Conflict("both decide which neurons stay", "`gates` has no neurons or layers"),
        "prune.structured": Conflict("each decides on what its gates are for", "their `gates` are different"),
        "prune.units": Conflict("both decide which heads and neurons stay", "`gates` is [hidden] alone"),
    }

    @property
    def goal(self) -> str:
        return goals.goal_of(self.options.budget)[0]

    @property
    def asked(self) -> float:
        return goals.goal_of(self.options.budget)[1]

    def check(self) -> None:
        goals.check(self, self.options.budget)
        if "hidden" in self.options.gates and self.goal == "latency":
            message = "the time that a narrower model takes is not measured, so `hidden` cannot aim at it"
            raise self.error(message, option="gates", hint="ask for macs, or leave `hidden` out")

    def wants(self) -> frozenset[str]:
        return self.needs | goals.wants(self.options.budget)
