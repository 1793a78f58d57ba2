"""Low rank: a linear layer becomes two smaller ones, whose product is the best of its rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.lowrank.asked import Ranks, chosen, costs, guessed, told
from cook.lowrank.factors import Spectrum
from cook.lowrank.sensitivity import TOKENS, sensitivities, until
from cook.lowrank.specs import LinearSpec
from cook.lowrank.spectra import Examples, Spectra
from cook.lowrank.targets import Target, beside, named_in_ranks, targets
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.nn import surgery
from cook.model.nn.lowrank import LowRank
from cook.passes import Effect, Pass, register

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy


@register
class LowRankLinear(LinearSpec, Pass):
    """Factorises linear layers before the optimizer is created, so that the run trains the factors."""

    _recalled: list[int | None] | None = None
    """The ranks of a run that goes on."""

    def settled(self, done: int) -> bool:
        """The factors are there from the start."""
        return True

    def plan(self, anatomy: Anatomy) -> Effect:
        splits, several = self._targets(anatomy)
        found = told(self, anatomy, several)
        ranks = guessed(self, anatomy, several) if found is None else found
        about = "about " if found is None else ""
        left = sum(_left(each, rank) for each, rank in zip(several, ranks, strict=True))
        count = sum(each.count for each in several)
        note = (
            f"{about}{left / count:.0%} of {count:,} weights in {len(several)} matrices are left as factors"
        )
        if whole := [each.name for each, rank in zip(several, ranks, strict=True) if rank is None]:
            more = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
            note += f"; {whole[0]}{more} would save nothing and stay whole"
        if missed := beside(self, anatomy):
            note += f"; {missed}"
        return Effect(
            parameters=list(dict.fromkeys(f"{each.fused or each.name}.weight" for each in several)),
            edits=[
                *splits,
                *(_edit(each, rank) for each, rank in zip(several, ranks, strict=True) if rank is not None),
            ],
            note=note,
            sizes="about" if found is None else "",
        )

    def recall(self, state: Mapping[str, Any]) -> None:
        self._recalled = list(state["ranks"])

    def attach(self, context: Context) -> None:
        splits, self.targets = self._targets(context.anatomy)
        self.missed = beside(self, context.anatomy)
        ranks = told(self, context.anatomy, self.targets) if self._recalled is None else self._recalled
        Blueprint(edits=splits).apply(context.model)
        for edit in splits:
            context.edit(edit)
        self.spectra = self._spectra(context, lambda: context.examples(self.options.rows))
        self.ranks = self._agreed(context, self._chosen(context) if ranks is None else ranks)
        self.lost: dict[str, float] = {}
        self._factorise(context)
        self.stored = {each.name: _weights(context.model, each.name) for each in self.targets}
        """How many weights are left of each target."""

    def facts(self, context: Context) -> dict[str, Any]:
        pairs = list(zip(self.targets, self.ranks, strict=True))
        left, count = sum(self.stored.values()), sum(each.count for each in self.targets)
        for each, rank in pairs:
            if surgery.has(context.model, each.name):
                module = surgery.get(context.model, each.name)
                found_rank = module.rank if isinstance(module, LowRank) else None
                self.check_measured(f"rank of {each.name}", found_rank, rank)
        found: dict[str, Any] = {
            "method": self.method,
            "ranks": {each.name: rank for each, rank in pairs if rank is not None},
            "whole": [each.name for each, rank in pairs if rank is None],
            "left": left,
            "of": count,
            "share": left / count,
            "energy": 1 - sum(self.lost.values()) / len(self.lost),
        }
        changed = len(found["ranks"])
        found["note"] = (
            f"{changed} of {len(pairs)} linear layers factorised, {left:,} of {count:,} weights left,"
            f" {100 * found['energy']:.1f} % of the energy kept"
        )
        if self.missed:
            found["note"] += f"; {self.missed}"
        if self.method != "data":
            return found
        errors = {name: math.sqrt(lost) for name, lost in self.lost.items()}
        worst = max(errors, key=errors.__getitem__)
        mean = sum(errors.values()) / len(errors)
        told_of = {"mean": mean, "worst": errors[worst], "worst_of": worst}
        return found | {
            "error": told_of,
            "tokens": max(self.spectra.tokens_of.values()),
            "jitter": self.spectra.jitter,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": list(self.ranks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if list(state["ranks"]) != self.ranks:
            message = "found other ranks than before the interrupt: the examples were others"
            raise self.error(message, hint="start the run anew")

    def _targets(self, anatomy: Anatomy) -> tuple[list[Edit], list[Target]]:
        """The edits that take fused layers apart, and the matrices."""
        splits, several = targets(self, anatomy)
        return (
            (splits, several)
            if self.options.ranks is None
            else named_in_ranks(self, anatomy, splits, several)
        )

    def _chosen(self, context: Context) -> Ranks:
        """The ranks that the spectra of the model as it is say."""
        each_costs, allowed = costs(self, context, self.targets)
        if self.method == "data" and self.options.energy is None:
            worths = self._moving(context)
        else:
            worths = {name: spectrum.worth / _total(spectrum) for name, spectrum in self._walk(self.spectra)}
        ordered = [worths[each.name] for each in self.targets]
        return chosen(self, self.targets, ordered, each_costs, allowed)

    def _moving(self, context: Context) -> dict[str, Tensor]:
        """What each direction of the targets moves the model's outputs by.

        How much a layer's own outputs change says little: where most of them is one direction, all others
        look cheap. Some of the examples do: what counts is the order.
        """
        tokens = TOKENS * max(min(each.size) for each in self.targets)
        some = list(until(context.model, context.examples(self.options.rows), tokens))
        moved = sensitivities(context.model, some, [each.name for each in self.targets])
        spectra = self._spectra(context, lambda: some, rough=True)
        return {
            name: spectrum.moving(moved[name]) / spectra.tokens_of[name]
            for name, spectrum in self._walk(spectra)
        }

    def _spectra(self, context: Context, examples: Examples, *, rough: bool = False) -> Spectra:
        names = [each.name for each in self.targets]
        dtype = torch.float64 if self.options.dtype == "float64" else torch.float32
        return Spectra(context.anatomy, self.method, names, examples, dtype, rough=rough)

    def _agreed(self, context: Context, ranks: Ranks) -> Ranks:
        """Those of the first process: equal sums may end in other last digits, and shapes must be alike."""
        found = context.agreed(torch.tensor([rank or 0 for rank in ranks])).tolist()
        if not any(found):
            hint = "keep less of them"
            raise self.error("all targets would stay whole: two factors would be no smaller", hint=hint)
        return [rank or None for rank in found]

    @torch.no_grad()
    def _factorise(self, context: Context) -> None:
        ranks = {each.name: rank for each, rank in zip(self.targets, self.ranks, strict=True)}
        for name, spectrum in self._walk(self.spectra):
            if (rank := ranks[name]) is None:
                continue
            module = LowRank.like(surgery.get(context.model, name), rank)
            for factor, values in zip((module.up, module.down), spectrum.factors(rank), strict=True):
                factor.weight.copy_(values)
            surgery.replace(context.model, name, module)
            self.lost[name] = spectrum.lost(rank)
        for each, rank in zip(self.targets, self.ranks, strict=True):
            if rank is not None:
                context.edit(_edit(each, rank))

    def _walk(self, spectra: Spectra) -> Iterator[tuple[str, Spectrum]]:
        try:
            yield from spectra
        except CookError as error:
            option = next((name for name in ("rows", "method") if name in (error.hint or "")), None)
            raise self.error(error.message, option=option, hint=error.hint) from error


def _total(spectrum: Spectrum) -> Tensor:
    return spectrum.worth.sum().clamp_min(torch.finfo(torch.float64).tiny)


def _weights(model: nn.Module, name: str) -> int:
    """How many weights a linear layer has, or the factors in its place."""
    module = surgery.get(model, name)
    several = (module.up, module.down) if isinstance(module, LowRank) else (module,)
    return sum(each.get_parameter("weight").numel() for each in several)


def _left(target: Target, rank: int | None) -> int:
    """How many weights a target has left."""
    return target.count if rank is None else rank * (target.out + target.in_)


def _edit(target: Target, rank: int) -> Edit:
    return Edit("lowrank", target.name, {"rank": rank})
