"""Structured pruning by L0 gates: training itself says which heads, neurons, layers and dimensions stay.

While the gates learn, what they close is multiplied with numbers between 0 and 1, drawn anew in every
forward, so that the losses of the run say what each is worth; a penalty leads their cost to the goal. Then
they become final: the rest of the run trains what stays, and the rest leaves when it is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cook.errors import CookError
from cook.model.arch.tensors import refuse_reentrant
from cook.model.arch.units import UnitGroup, owned, units
from cook.model.arch.width import stream
from cook.model.edits.depth import droppable
from cook.model.edits.proof import prove
from cook.model.nn import surgery
from cook.model.nn.skipped import Skipped
from cook.passes import Effect, Pass, Term, register
from cook.prune.specs.units import KINDS, StructuredSpec
from cook.prune.structure import budget as goals
from cook.prune.structure import cost
from cook.prune.structure.binarise import binarise, least, width_of
from cook.prune.structure.gates import Gates, hard_concrete, lagrangian, probabilities
from cook.prune.structure.gating import Gating, fold
from cook.prune.structure.scheduled import check_remaining
from cook.prune.structure.shares import Expected, Shares

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy

WORDS = {"hidden": "dimensions of the residual stream"}
"""What is not called by its kind."""
TRAVEL = 20.0
"""How far a gate could go in its window at the full learning rate, where no speed is given."""


@register
class PruneStructured(StructuredSpec, Pass):
    """Trains gates over layers, heads, neurons and hidden dimensions with the losses and a budget.

    When gates become final, those of remaining units are multiplied into the weights that read the units;
    remaining layers and hidden dimensions are not scaled.
    """

    def plan(self, anatomy: Anatomy) -> Effect:
        goals.check_device(self, self.options.budget)
        self._find(anatomy)
        prove(anatomy, self._gated())
        costs, counted = goals.planned(anatomy.model, self.units, self.options.budget, self.stream)
        if counted:
            self._check_budget(*map(self._shares, costs))
        gated = list(self.units if self.layers else self._gated())
        if self.stream is not None:
            gated.append(self.stream)
        among = {each.kind: sum(other.count for other in gated if other.kind == each.kind) for each in gated}
        among["layers"] = len(self.layers)
        which = " and ".join(
            f"{among[kind]:,} {WORDS.get(kind, kind)}" for kind in KINDS if kind in self.options.gates
        )
        names = [name for each in gated for part in each.parts for name, *_ in owned(anatomy.model, part)]
        return Effect(
            parameters=list(dict.fromkeys(names)),
            loses={
                (part.module, part.axis): math.gcd(*(number for span in part.spans for number in span))
                for each in gated
                for part in each.parts
            },
            # What a layer holds leaves with it.
            claims=frozenset(
                each.kind if each is self.stream else f"{each.kind} of {each.where}" for each in gated
            )
            | ({"layers"} if self.layers else set()),
            note=f"{self.asked:.3g} of the {self.goal} are left; which of {which} go is learned",
            sizes="at most",
        )

    def attach(self, context: Context) -> None:
        if self.window.end == self.window.start:
            hint = "let it end later: gates learn inside of the window"
            raise self.error("an empty window, in which no gate learns", option="end", hint=hint)
        self._find(context.anatomy)
        prove(context.anatomy, self._gated(), context.inputs)
        budget = self.options.budget
        self.shares = self._shares(goals.measured(context, self.units, units, budget, self.stream))
        if self.goal != "latency":
            self._check_budget(self.shares)
        sizes = [len(self.layers), *(each.count for each in self._gated())]
        sizes += [] if self.stream is None else [self.stream.count]
        dtype = torch.promote_types(context.model.dtype, torch.float32)
        self.gates = Gates(sizes, dtype=dtype, device=context.model.device)
        context.train_also(self, self.gates)
        self.gating = Gating(self.gates, self.layers, self._gated(), self.stream, self.options.seed)
        self.hard = False
        self.kept = [True] * len(self.layers)
        self.keep = [torch.ones(each.count, dtype=torch.bool) for each in self.units]
        self.wide = None if self.stream is None else torch.ones(self.stream.count, dtype=torch.bool)
        self.soft, self.left = 1.0, torch.ones(())
        self._place()

    def open(self, context: Context) -> None:
        self.gating.install(context.model, context.hooks)

    def before_step(self, context: Context) -> None:
        self.gating.at(context.step)
        if context.step >= self.window.end:
            self._complete(context)
        elif context.step >= self.window.start and not self.gating.learning:
            modules = context.model.modules()
            refuse_reentrant(each for each in modules if hasattr(each, "gradient_checkpointing"))
            if self.goal == "latency":
                self._check_budget(self.shares)  # only now: a run that goes on has the table of its beginning
            self.gating.learning = True
            self.gates.speed = self._speed(context)

    def losses(self, context: Context) -> dict[str, Term]:
        left = self._expected()
        self.left = left.detach()
        warm = self.options.warmup * (self.window.end - self.window.start)
        progress = min(1.0, (context.step - self.window.start) / warm) if warm else 1.0
        target = 1 + (self.asked - 1) * progress
        return {"budget": Term(lagrangian(left - target, self.gates.multipliers))}

    def after_step(self, context: Context) -> None:
        if self.gating.learning:
            self.gates.bound()
        if context.step == self.window.end - 1:
            self._complete(context)

    def finish(self, context: Context) -> None:
        self._complete(context)
        for each, home, stays in zip(self.units, self.shares.homes, self.keep, strict=True):
            if (home is None or self.kept[home]) and not stays.all():
                context.removal.remove(each, stays)
        if self.stream is not None and self.wide is not None and not self.wide.all():
            context.removal.remove(self.stream, self.wide)
            self.gating.open = None
        context.removal.remove_layers(self._gone())
        context.masks.drop(self.id)

    def facts(self, context: Context) -> dict[str, Any]:
        model = context.model
        counts = [int(stays.sum()) for stays in self.keep]
        gone = set(self._gone())
        left: dict[str, int] = {}
        for each, home, count in zip(self.units, self.shares.homes, counts, strict=True):
            if home is None or self.kept[home]:
                check_remaining(self, model, each, count)
                left[each.where] = count
        layers = [
            number
            for number, layer in enumerate(self.all_layers)
            if not isinstance(surgery.get(model, layer), Skipped)
        ]
        expected = [n for n, layer in enumerate(self.all_layers) if layer in self.live and layer not in gone]
        self.check_measured("layers", layers, expected)
        if self.stream is not None and self.wide is not None:
            check_remaining(self, model, self.stream, int(self.wide.sum()))
        reached = self.shares.of(self.kept, counts, width_of(self.wide))
        what = {"macs": "multiply-accumulates"}.get(self.goal, self.goal)
        note = (
            f"{100 * reached:.1f} % of the {what} left, asked {100 * self.asked:.1f} %;"
            f" {len(layers)} of {len(self.all_layers)} layers stay"
        )
        if self.wide is not None:
            note += f", width {int(self.wide.sum())} of {len(self.wide)}"
        return {
            "note": note,
            "goal": self.goal,
            "asked": self.asked,
            "reached": reached,
            "expected": self.soft,
            "layers": layers,
            "of": len(self.all_layers),
            "left": left,
            **({} if self.wide is None else {"hidden": int(self.wide.sum()), "of_hidden": len(self.wide)}),
            "speed": self.gates.speed,
        }

    def status(self) -> str:
        return f"{self.left.item():.0%} of {self.goal} left" if self.gating.learning else ""

    def state_dict(self) -> dict[str, Any]:
        return {
            "learning": self.gating.learning,
            "hard": self.hard,
            "speed": self.gates.speed,
            "soft": self.soft,
            "kept": list(self.kept),
            "keep": list(self.keep),
            "wide": self.wide,
            "shares": self.shares.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.hard, self.soft, self.gates.speed = state["hard"], state["soft"], state["speed"]
        self.kept, self.keep = list(state["kept"]), [each.cpu() for each in state["keep"]]
        self.wide = None if state["wide"] is None else state["wide"].cpu()
        self._pass_by(learning=state["learning"])
        self.shares = self.shares.restored(state["shares"])
        self._place()

    def _find(self, anatomy: Anatomy) -> None:
        """The units of the model, and the layers and the stream if they have gates."""
        self.units = units(anatomy)
        self.stream: UnitGroup | None = None
        if "hidden" in self.options.gates:
            try:
                self.stream = stream(anatomy)
            except CookError as error:
                hint = f"{error.hint}; or leave `hidden` out"
                raise self.error(error.message, option="gates", hint=hint) from error
        self.layers: list[str] = []
        self.all_layers, self.stacks = anatomy.layers, anatomy.stacks
        self.live = set(anatomy.live)
        if "layers" in self.options.gates:
            try:
                possible = droppable(anatomy)
            except CookError as error:
                hint = "leave layers out: gates: [heads, neurons]"
                raise self.error(error.message, option="gates", hint=hint) from error
            self.layers = [layer for layer in anatomy.live if layer in set(possible)]

    def _gated(self) -> list[UnitGroup]:
        return [each for each in self.units if each.kind in self.options.gates]

    def _groups(self) -> list[int]:
        """Of each gated layer, which list of layers it is in."""
        return [id(self.stacks[layer]) for layer in self.layers]

    def _gone(self) -> list[str]:
        return [layer for layer, stays in zip(self.layers, self.kept, strict=True) if not stays]

    def _shares(self, whole: cost.Cost) -> Shares:
        numbers = {layer: number for number, layer in enumerate(self.layers)}
        return Shares.made(whole, [numbers.get(each.layers[0]) for each in self.units], self.layers)

    def _check_budget(self, *several: Shares) -> None:
        """Raise CookError for a budget that cannot be reached with any of several costs."""
        gated = [each.kind in self.options.gates for each in self.units]
        width = None if self.stream is None else self.stream.count
        nearest = [
            least(shares, gated, minimum=self.options.minimum, stacks=self._groups(), width=width)
            for shares in several
        ]
        if min(nearest) > self.asked:
            enough = math.ceil(1000 * max(nearest)) / 1000
            less = f"ask for {enough:g} or more, or " if enough < 1 else ""
            raise self.error(
                f"{self.asked:.3g} of the {self.goal} cannot be reached, the least is {max(nearest):.3g}",
                option=f"budget.{self.goal}",
                hint=f"{less}give more `gates`",
            )

    def _speed(self, context: Context) -> float:
        if self.options.speed is not None:
            return float(self.options.speed)
        rate = context.learning_rate or 1e-4
        return TRAVEL / (rate * (self.window.end - self.window.start))

    def _pass_by(self, *, learning: bool) -> None:
        self.gating.learning = learning
        self.gating.passed = {number for number, stays in enumerate(self.kept) if not stays}
        if self.wide is not None:
            self.gating.open = None if self.wide.all() else self.wide.to(self.gates.moved.device)

    def _place(self) -> None:
        """What every step needs, on the device of the gates: nothing is copied there in a step."""
        gated = [number for number, each in enumerate(self.units) if each.kind in self.options.gates]
        sizes = torch.tensor([self.units[number].count for number in gated], dtype=torch.long)
        like = self.gates.moved.detach()
        self._entries = torch.tensor(gated, dtype=torch.long).repeat_interleave(sizes).to(like.device)
        self._full = like.new_tensor([0.0 if n in gated else u.count for n, u in enumerate(self.units)])
        self._cost = Expected(self.shares, like)

    def _expected(self) -> Tensor:
        width = 0 if self.stream is None else self.stream.count
        every = probabilities(self.gates.loga)
        layers, units, wide = every.split([len(self.layers), len(every) - len(self.layers) - width, width])
        if self._full.device != units.device:
            self._place()  # the model has moved since
        return self._cost(layers, self._full.index_add(0, self._entries, units), wide if width else None)

    @torch.no_grad()
    def _complete(self, context: Context) -> None:
        """Make the gates final; late when the step at the window's end was skipped."""
        if self.hard:
            return
        self._check_budget(self.shares)  # the window may have been skipped whole, and with it the check there
        loga = context.agreed(self.gates.loga.detach()).cpu()
        layers, *others = self.gates.split(loga)
        rest = iter(others)
        scores = [next(rest) if each.kind in self.options.gates else None for each in self.units]
        self.soft = float(self._expected())
        self.kept, self.keep, self.wide = binarise(
            self.shares,
            layers.tolist(),
            scores,
            self.asked,
            minimum=self.options.minimum,
            stacks=self._groups(),
            stream=None if self.stream is None else others[-1],
        )
        self.hard = True
        self._pass_by(learning=False)
        for each, score, stays in zip(self.units, scores, self.keep, strict=True):
            if score is not None:
                fold(context.model, each, hard_concrete(score))
            if not stays.all():
                context.removal.hold(self.id, each, stays)
        if self.stream is not None and self.wide is not None and not self.wide.all():
            context.removal.hold(self.id, self.stream, self.wide, too=True)
        for layer in self._gone():
            context.removal.hold_layer(self.id, layer)
