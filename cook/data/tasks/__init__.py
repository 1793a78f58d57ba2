"""Training tasks: one file per task, and the table that names them."""

from __future__ import annotations

from cook.builtin import task_hint
from cook.data.tasks.image_classification import ImageClassification
from cook.data.tasks.task import Task
from cook.data.tasks.text_classification import TextClassification
from cook.errors import CookError

TASKS: dict[str, type[Task]] = {task.name: task for task in (TextClassification, ImageClassification)}

__all__ = ["TASKS", "Task", "find"]


def find(name: str, *, where: str | None = None) -> type[Task]:
    """The task called `name`.

    Raises:
        CookError: there is none; the message names the nearest one, or says that it is not supported.
    """
    if name not in TASKS:
        raise CookError(f"there is no task {name!r}", where=where, hint=task_hint(name))
    return TASKS[name]
