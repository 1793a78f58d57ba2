"""What a model is trained to do: one file a task, and the table that names them."""

from __future__ import annotations

from cook.errors import CookError, nearest
from cook.train.tasks.image_classification import ImageClassification
from cook.train.tasks.task import Task
from cook.train.tasks.text_classification import TextClassification

TASKS: dict[str, type[Task]] = {task.name: task for task in (TextClassification, ImageClassification)}

__all__ = ["TASKS", "Task", "find"]


def find(name: str, *, where: str | None = None) -> type[Task]:
    """The task called `name`.

    Raises:
        CookError: with the nearest name when there is none.
    """
    if name not in TASKS:
        hint = nearest(name, TASKS) or f"the tasks are {', '.join(TASKS)}"
        raise CookError(f"there is no task {name!r}", where=where, hint=hint)
    return TASKS[name]
