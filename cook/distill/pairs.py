"""What the intermediate losses share: which layer learns from which, tensors in pairs, projections.

The losses compare a tensor inside of the student with one inside of a teacher. Where widths differ, a
learned projection takes the student's to the teacher's; it is trained with the model and dropped at the end.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torch import Tensor, nn

from cook.distill.base import DistillationPass
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.shapes import shapes
from cook.model.arch.tensors import find, modules_of
from cook.passes import Effect

if TYPE_CHECKING:
    from cook.context import Context
    from cook.teacher.teacher import Teacher

Shape: TypeAlias = tuple[int, ...]
Strategy: TypeAlias = Callable[[int, int], list[int]]
"""(student's layers, teacher's layers) -> a teacher layer for each student layer from the first on."""


class Pair(NamedTuple):
    """The names of a tensor of the student and of the tensor of the teacher that it learns from.

    Attributes:
        projected: whether the pass's projection, if any, applies to the student's.
    """

    student: str
    teacher: str
    projected: bool = True


def uniform(students: int, teachers: int) -> list[int]:
    """Every k-th teacher layer: student layer i (from 1) learns from i * teachers / students."""
    return [(index + 1) * teachers // students - 1 for index in range(students)]


def last(students: int, teachers: int) -> list[int]:
    """The student's layers learn from as many of the teacher's last ones."""
    return list(range(teachers - students, teachers))


def layer_map(
    given: Sequence[int] | Mapping[str, int], students: int, teachers: int
) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer) of an explicit map, both counted from 0.

    Args:
        given: a teacher layer for each student layer from the first on, or `{student: teacher}`, in any
            order. Negative numbers count from the end.
        students, teachers: layers that they have.

    Raises:
        CookError: a layer that is not there, one that learns twice, or pairs that cross.
    """
    pairs: list[tuple[int, int]] = []
    items = given.items() if isinstance(given, Mapping) else enumerate(given)
    for key, teacher in items:
        try:
            student = int(key)
        except ValueError:
            raise CookError(f"{key!r} is no layer's number", hint="such as {0: 1, 1: 3, 2: 5}") from None
        for who, number, count in (("student", student, students), ("teacher", teacher, teachers)):
            if not -count <= number < count:
                raise CookError(f"there is no layer {number}: the {who} has {count}, 0 to {count - 1}")
        pairs.append((student % students, teacher % teachers))
    pairs.sort()
    for one, following in pairwise(pairs):
        if not (one[0] < following[0] and one[1] < following[1]):
            found = ", ".join(f"{student} from {teacher}" for student, teacher in pairs)
            raise CookError(f"the layers must increase on both sides, found {found}")
    return pairs


def token_mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean over examples of the mean over an example's valid tokens.

    So each example counts alike whatever its length, and cutting a batch into pieces changes nothing.

    Args:
        values: [batch, tokens].
        valid: bool [batch, tokens], or anything that broadcasts to it.
    """
    counts = valid.expand_as(values)
    sums = values.masked_fill(~counts, 0.0).sum(-1)
    return (sums / counts.sum(-1).clamp(min=1)).mean()


def attended_mean(values: Tensor, attended: Tensor) -> Tensor:
    """The mean over examples of the mean over heads and the positions that are attended to.

    Args:
        values: [batch, heads, tokens, tokens].
        attended: bool [batch, tokens, tokens].
    """
    return token_mean(values.mean(1).flatten(1), attended.flatten(1))


def projection(student: int, teacher: int) -> nn.Linear:
    """A matrix from one width to another that begins as the identity, cut or filled up with zeros.

    A student that is made of its teacher begins in the same coordinates; and nothing here is random.
    """
    made = nn.utils.skip_init(nn.Linear, student, teacher, bias=False)
    nn.init.eye_(made.weight)
    return made


class Intermediate(DistillationPass):
    """A pass that compares tensors inside of student and teacher, pair by pair."""

    @abstractmethod
    def pairs(self, student: Anatomy, teacher: Anatomy) -> list[Pair]:
        """Which tensors are compared.

        Raises:
            CookError: the models do not permit it.
        """

    def plan(self, anatomy: Anatomy) -> Effect:
        if not anatomy.teachers:
            return Effect(note="its teacher is not there to be planned with")
        pairs = self.pairs(anatomy, self._teacher_anatomy(anatomy))
        self._project(self.sizes(anatomy, pairs))
        read = modules_of(find(anatomy, pair.student) for pair in pairs)
        return Effect(reads=frozenset(read), note=self.note(pairs))

    def attach(self, context: Context) -> None:
        super().attach(context)
        self.watched = self.pairs(context.anatomy, self._teacher_anatomy(context.anatomy))
        with context.hooks.silenced():  # no other pass shall see the example that tells the sizes
            sizes = self.sizes(context.anatomy, self.watched)
        for pair in self.watched:
            context.watch(pair.student)
            self.teacher(context).watch(pair.teacher)
        self._projections = self._project(sizes)
        if self._projections:
            made = nn.ModuleList(dict.fromkeys(self._projections.values()))
            context.train_also(self, made.to(context.model.device))

    def layers(
        self, strategies: Mapping[str, Strategy], student: Anatomy, teacher: Anatomy
    ) -> list[tuple[int, int]]:
        """Which layer of the student learns from which of the teacher, as the option `layers` has it.

        Args:
            strategies: by the word that the option has for each.

        Raises:
            CookError: there are no such layers, or they are in disorder.
        """
        given, student_layers, teacher_layers = self.options.layers, len(student.layers), len(teacher.layers)
        if isinstance(given, str):
            live = [number for number, layer in enumerate(student.layers) if layer in student.live]
            if len(live) > teacher_layers:
                raise self.error(
                    f"{given!r} needs a teacher layer for each of the student's {len(live)}: "
                    f"there are {teacher_layers}",
                    option="layers",
                    hint="say which learn, as {student: teacher}: {0: 0}",
                )
            given = {
                str(live[i]): each for i, each in enumerate(strategies[given](len(live), teacher_layers))
            }
        try:
            return layer_map(given, student_layers, teacher_layers)
        except CookError as error:
            raise self.error(error.message, option="layers", hint=error.hint) from error

    def teacher(self, context: Context) -> Teacher:
        """The teacher that the options name."""
        return context.teachers[self.options.teacher]

    def compared(self, context: Context, pair: Pair) -> tuple[Tensor, Tensor]:
        """Both tensors of a pair in this forward, in float32, the student's projected."""
        student, teacher = context.tensor(pair.student), self.teacher(context).tensor(pair.teacher)
        if pair in self._projections:
            student = self._projections[pair](student.float())
        return student.float(), teacher.float()

    def attended(self, context: Context, pair: Pair, scores: Tensor) -> Tensor:
        """Which positions of a pair of attention tensors both models attend to.

        Args:
            scores: the student's, [batch, heads, tokens, ...].
        """
        teacher = self.teacher(context).anatomy, pair.teacher
        return context.attended(scores[:, 0], pair.student, teacher)

    def note(self, pairs: Sequence[Pair]) -> str:
        """A line for the plan."""
        first = f"{pairs[0].student} from {pairs[0].teacher}"
        return first if len(pairs) == 1 else f"{first} and {len(pairs) - 1} more"

    def sizes(self, anatomy: Anatomy, pairs: Sequence[Pair]) -> dict[Pair, tuple[Shape, Shape]]:
        """The shapes of the tensors of each pair, for one example: the student's and the teacher's.

        Raises:
            CookError: two tensors cannot be compared.
        """
        student = self._shapes(anatomy, "student", pairs)
        teacher = self._shapes(self._teacher_anatomy(anatomy), "teacher", pairs)
        for pair in pairs:
            one, other = student[pair.student], teacher[pair.teacher]
            if not self.comparable(pair, one, other):
                told = f"{pair.student} is {_told(one)}, the teacher's {pair.teacher} is {_told(other)}"
                raise self.error(f"{told}: they cannot be compared", hint=self.unequal(one, other))
        return {pair: (student[pair.student], teacher[pair.teacher]) for pair in pairs}

    def comparable(self, pair: Pair, student: Sequence[int], teacher: Sequence[int]) -> bool:
        """Whether tensors of these shapes, whose first dimension is the examples, can be compared."""
        projected = pair.projected and getattr(self.options, "projection", "none") != "none"
        rest = -1 if projected else None
        return student[1:rest] == teacher[1:rest]

    def unequal(self, student: Sequence[int], teacher: Sequence[int]) -> str | None:
        """What to do about tensors of these shapes, which cannot be compared."""
        if student[:-1] == teacher[:-1] and hasattr(self.options, "projection"):
            return "set projection: shared (one matrix for all pairs) or each (one for each)"
        return None

    def _shapes(self, anatomy: Anatomy, who: str, pairs: Sequence[Pair]) -> dict[str, tuple[int, ...]]:
        try:
            return shapes(anatomy, [getattr(pair, who) for pair in pairs])
        except CookError as error:
            # Of the same kind: who plans without weights asks whether it is `Unmeasured`.
            raise type(error)(f"in the {who}, {error.message}", where=self.where, hint=error.hint) from error

    def _project(self, sizes: Mapping[Pair, tuple[Shape, Shape]]) -> dict[Pair, nn.Module]:
        """A matrix for each pair, without bias (Jiao et al. 2020, equation 8), as the options have it."""
        kind = getattr(self.options, "projection", "none")
        projected = {
            pair: (student[-1], teacher[-1])
            for pair, (student, teacher) in sizes.items()
            if pair.projected and kind != "none"
        }
        if kind == "each":
            return {pair: projection(*widths) for pair, widths in projected.items()}
        if len(different := set(projected.values())) > 1:
            raise self.error(
                f"one matrix cannot take these widths to each other: {sorted(different)}",
                option="projection",
                hint="set projection: each",
            )
        one = [projection(*widths) for widths in different]
        return dict.fromkeys(projected, one[0]) if one else {}

    def _teacher_anatomy(self, anatomy: Anatomy) -> Anatomy:
        index = self.options.teacher
        if index >= len(anatomy.teachers):
            count = len(anatomy.teachers)
            raise self.error(
                f"there is no teacher {index}: there {'is one' if count == 1 else f'are {count}'}",
                option="teacher",
                hint="they are counted from 0",
            )
        return anatomy.teachers[index]


def _told(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[1:]))
