"""The contract of a pass, and the registry that finds passes by name.

A pass is one method bound to its options. It knows its own method, and of other passes only the names of
those that it is `incompatible` with; they meet only in the `Context`, which calls them in this order:

    plan                                    once, on a model without weights
    attach, open                            once, before the optimizer exists
    before_step, after_step                 every step
    skipped_layers, losses                      every forward
    finish, facts                           once, when the last step is done

A pass is declared apart from what it does: its `Spec` (name, options and which of them fit together) is
all that reading a recipe needs, and lives in a module that imports nothing heavy. The pass inherits it:
`class PruneWeights(WeightsSpec, Pass)`. `builtin.py` says where both halves of those shipped here are. Other
packages register one class, a Pass and its own Spec, through the entry point group `cook.passes`. The
schema, the validator, `cook passes`, and the shared tests find both kinds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from cook.builtin import BUILT_IN
from cook.errors import CookError, RunError, nearest
from cook.options import NoOptions, build, required, schema_of

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy
    from cook.model.edits.edit import Edit

PHASES = ("shape", "observe", "structure", "weights", "precision")
"""The order of `finish`: structure leaves before weights are folded, integers come last.

What changes shape at once does so before any other pass is attached, wherever the recipe has it.
"""

NEEDS = frozenset({"training", "teacher", "calibration", "tokenizer"})
"""What a pass can need besides the model."""

FEATURES = frozenset({"ddp", "checkpointing"})
"""What a run can have that a pass must work with: several processes, gradient checkpointing."""


@dataclass(frozen=True)
class Window:
    """The steps during which a pass acts: `start <= step < end`, counted from 0."""

    start: int
    end: int

    def __contains__(self, step: object) -> bool:
        return isinstance(step, int) and self.start <= step < self.end

    def progress(self, step: int) -> float:
        """How far through the window `step` is, from 0 to 1."""
        if self.end <= self.start:
            return 1.0 if step >= self.start else 0.0
        return min(1.0, max(0.0, (step - self.start) / (self.end - self.start)))


@dataclass
class Effect:
    """What a pass will do to a model, told before it has weights.

    Attributes:
        parameters: names of the parameters that the pass acts on.
        edits: the structural edits that `finish` will make, applied to the meta model at once so
            that the next pass plans on the result.
        zeros: how many of the model's numbers the pass will have set to zero at its end; fewer where another
            pass takes away nobody knows what.
        claims: what the pass alone may act on, in words such as `heads of layers.0`.
        loses: what leaves when the pass finishes: a module and `out` (rows) or `in` (columns), and how many
            at a time.
        groups: the rows or columns of a module that the pass takes together, and how many, from the first on.
        reads: modules of which the pass needs what they give in every forward.
        skips: layers that some forwards do without.
        note: one line for people.
        sizes: `at most` or `about`, where what leaves depends on data and the sizes after are such.
    """

    parameters: list[str] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    zeros: int = 0
    claims: frozenset[str] = frozenset()
    loses: Mapping[tuple[str, str], int] = field(default_factory=dict)
    groups: Mapping[tuple[str, str], int] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    skips: frozenset[str] = frozenset()
    note: str = ""
    sizes: str = ""


class Term(NamedTuple):
    """A loss term: its value, a scalar tensor, and the weight that it enters the loss with."""

    value: torch.Tensor
    weight: float = 1.0


class Conflict(NamedTuple):
    """Why a recipe cannot combine a pass with another one.

    Attributes:
        reason: what stands in the way, a clause.
        unless: the options or the order with which a recipe can have both, a clause. The plan, which knows
            the model, then refuses them where they conflict. None: always, so that the recipe is refused.
        only_below: whether the pass that declares this can still be listed above the other one.
    """

    reason: str
    unless: str | None = None
    only_below: bool = False


class Spec:
    """What a pass declares in class attributes, and what can be said of its options without a model.

    A recipe is checked with it, so its module imports nothing heavy: no torch, no transformers.

    Args:
        options: an instance of `Options`, or a mapping that its schema has let through; None: all defaults.
        id: unique in a run: the name, with `#2` for its second use.
        where: the place in the recipe, for errors.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    """A frozen dataclass whose fields `cook.options.option` makes: type, default, range, line of help."""
    required: ClassVar[tuple[str, ...]] = ()
    """The options without a default; follows from Options."""
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """Options that show the pass at work; the shared tests run each, and the first beside other passes."""
    phase: ClassVar[str] = "observe"
    needs: ClassVar[frozenset[str]] = frozenset()
    """What a pass of this kind needs; one whose options decide says so in `wants`."""
    supports: ClassVar[frozenset[str]] = FEATURES
    reads: ClassVar[str | None] = None
    """`text` for a pass that only models of text can have; any other model is refused in the plan."""
    once: ClassVar[bool] = False
    """Whether a recipe may name the pass only once."""
    incompatible: ClassVar[Mapping[str, Conflict]] = {}
    """Passes that a recipe cannot combine with this one, by name, itself included.

    One of the two declares it, for both orders; `conflict` asks both.
    """

    options: Any
    """The instance of Options; a subclass annotates its type."""
    window: Window

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "Options" in vars(cls):
            cls.required = required(cls.Options)

    def __init__(self, options: Any = None, *, id: str | None = None, where: str | None = None):
        self.options = options if isinstance(options, self.Options) else build(self.Options, options or {})
        self.id = id or self.name
        self.where = where or self.id
        self.window = Window(0, 0)

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema of each option: type, range, default and a one-line description."""
        return schema_of(cls.Options)

    def replace(self, **changes: Any) -> Self:
        """A pass like this one, not attached to anything, with some options changed."""
        return type(self)(dataclasses.replace(self.options, **changes), id=self.id, where=self.where)

    def wants(self) -> frozenset[str]:
        """What this pass needs with the options that it has: `needs`, or less."""
        return self.needs

    def check(self) -> None:
        """Raise CookError for options that the schema lets through and that cannot work together."""

    def error(self, message: str, *, option: str | None = None, hint: str | None = None) -> CookError:
        """A CookError that points at this pass, or at one of its options, in the recipe."""
        return CookError(message, where=f"{self.where}.{option}" if option else self.where, hint=hint)


class Pass(Spec):
    """One compression method: the declaration, and what the session calls."""

    def plan(self, anatomy: Anatomy) -> Effect:
        """Say what will be touched. `anatomy.model` is on the meta device.

        Raises:
            CookError: when a target matches nothing, or the model lacks what the pass needs.
        """
        return Effect()

    def attach(self, context: Context) -> None:
        """Change shapes, add trainable parameters, hooks and masks; the optimizer comes after."""

    def open(self, context: Context) -> None:
        """Put hooks on modules: all passes are attached, and none replaces a module any more."""

    def before_step(self, context: Context) -> None:
        """Move the schedule; called at the start of every step of the run, in the window or not."""

    def losses(self, context: Context) -> dict[str, Term]:
        """The loss terms of this forward, by name; called inside the window only.

        A value is a mean over the batch's items (examples, or valid tokens), as the task's own is.
        """
        return {}

    def skipped_layers(self, context: Context) -> Sequence[str]:
        """The layers that the coming forward does without, by name, of those told to `may_skip`.

        Called before each forward of the session inside the window, while the model is in train mode.
        """
        return ()

    def task_weight(self) -> float:
        """What the task's own loss is multiplied with while the pass is in its window."""
        return 1.0

    def after_step(self, context: Context) -> None:
        """Called after a real optimizer step: not when the fp16 scaler skipped it."""

    def settled(self, done: int) -> bool:
        """Whether the pass is done with the model after so many steps: only then it may be the best one.

        Before, it would be less compressed than the result has to be. A pass that compresses to the end
        of the run without an end of its own says from when on.
        """
        return self.window.end <= done

    def finish(self, context: Context) -> None:
        """Leave plain modules behind, and entries in `session.blueprint` for what is not plain."""

    def check_measured(self, what: str, found: object, expected: object) -> None:
        """Raise RunError unless the finished model is as this pass made it.

        Args:
            what: was measured, in words: "heads of encoder.layer.0.attention".
            found: on the model.
            expected: what the pass decided.
        """
        if found != expected:
            raise RunError(
                f"{what}: the finished model has {found}, expected {expected}",
                where=self.id,
                hint="this is a fault of cook: please report it with the recipe",
            )

    def facts(self, context: Context) -> dict[str, Any]:
        """What was reached (sparsity, ranks, scales), as JSON values for the report.

        Called after `finish`. Measured on the model, and not repeated from the options: `check_measured`
        raises where the model differs from what the pass decided.
        Under `note` one line for people: words and rounded numbers, about 120 characters at most.
        """
        return {}

    def status(self) -> str:
        """A word for the progress bar: how far the pass has come."""
        return ""

    def recall(self, state: Mapping[str, Any]) -> None:
        """Before it is attached to a run that goes on: what `state_dict` gave before the interrupt.

        For choices that shapes depend on, since on other hardware they could turn out another way.
        """

    def state_dict(self) -> dict[str, Any]:
        """What must survive an interrupt and is in no parameter: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


_registry: dict[str, type[Pass]] = {}
P = TypeVar("P", bound=type[Pass])


def register(cls: P) -> P:
    """Class decorator: make a pass known by its `name`."""
    if cls.phase not in PHASES:
        raise ValueError(f"{cls.name}: phase {cls.phase!r} is none of {PHASES}")
    if unknown := cls.needs - NEEDS:
        raise ValueError(f"{cls.name}: needs {sorted(unknown)} are none of {sorted(NEEDS)}")
    if any(set(cls.required) - set(example) for example in cls.examples):
        raise ValueError(f"{cls.name}: an example lacks some of the required {sorted(cls.required)}")
    home = BUILT_IN.get(cls.name)
    taken = home is not None and home.implementation != f"{cls.__module__}:{cls.__qualname__}"
    if taken or _registry.get(cls.name, cls) is not cls:
        raise ValueError(f"two passes are called {cls.name!r}")
    _registry[cls.name] = cls
    return cls


def declared(names: Iterable[str] | None = None) -> dict[str, type[Spec]]:
    """The declarations of all known passes by name, sorted; imports nothing heavy for those shipped here.

    Args:
        names: what is asked for. While those are all shipped here, passes of other packages, which can be
            slow to import, are left out. Default: all passes.
    """
    if names is None or not {*BUILT_IN, *_registry}.issuperset(names):
        _add_other_packages()
    found: dict[str, type[Spec]] = {name: _imported(home.spec) for name, home in BUILT_IN.items()}
    return dict(sorted({**_registry, **found}.items()))


def registered() -> dict[str, type[Pass]]:
    """All known passes by name, sorted, ready to be used."""
    for home in BUILT_IN.values():
        _imported(home.implementation)
    _add_other_packages()
    return dict(sorted(_registry.items()))


def _imported(place: str) -> Any:
    """The class at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _add_other_packages() -> None:
    for cls in _of_other_packages():
        register(cls)


@cache  # every look-up of a pass asks, and finding them reads a file of every package that is installed
def _of_other_packages() -> tuple[type[Pass], ...]:
    return tuple(point.load() for point in entry_points(group="cook.passes"))


def spec(name: str, *, where: str | None = None) -> type[Spec]:
    """The declaration of the pass called `name`.

    Raises:
        CookError: with the nearest name when there is none.
    """
    known = declared([name])
    if name not in known:
        hint = nearest(name, known) or f"the passes are {', '.join(known)}"
        raise CookError(f"there is no pass {name!r}", where=where, hint=hint)
    return known[name]


def conflict(first: type[Spec], second: type[Spec]) -> Conflict | None:
    """Why a recipe cannot list `first` above `second`, as either of them declares it; None if it can."""
    if first.name == second.name and first.once:
        return Conflict("a recipe can have it only once")
    if found := second.incompatible.get(first.name):
        return found
    found = first.incompatible.get(second.name)
    return None if found is None or found.only_below else found


def find(name: str, *, where: str | None = None) -> type[Pass]:
    """The pass called `name`.

    Raises:
        CookError: with the nearest name when there is none.
    """
    spec(name, where=where)
    return _imported(BUILT_IN[name].implementation) if name in BUILT_IN else _registry[name]
