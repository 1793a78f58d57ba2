"""Every error that a user can cause, and the search for the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class CookError(Exception):
    """The recipe or one of its inputs is wrong.

    Args:
        message: what was found and what was expected.
        where: the place: `recipe.yaml:12:5: passes[1].sparsity`, a file, a folder.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None):
        super().__init__(message)
        self.message, self.where, self.hint = message, where, hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class RecipeErrors(CookError):
    """All the mistakes of one recipe, each a CookError of its own."""

    def __init__(self, problems: Sequence[CookError]):
        super().__init__(f"{len(problems)} mistakes in the recipe")
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class RunError(CookError):
    """The recipe was fine; the run failed: a loss that is not finite, a full disk, no memory."""

    exit_code = 1


class Interrupted(RunError):
    """A signal stopped the run after a checkpoint was written."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """A hint naming the most similar of `names`, or None when nothing is similar.

    >>> nearest("prune.weight", ["prune.weights", "quant.qat"])
    "did you mean 'prune.weights'?"
    """
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}?" if found else None
