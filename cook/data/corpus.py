"""Unlabelled texts, for passes that count words: those of the run's data, or of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from cook.data.files import tables
from cook.data.files.encodings import Unreadable, read_lines
from cook.data.files.formats import DATA_SUFFIXES
from cook.data.tasks.task import Task
from cook.errors import CookError

Corpus = Callable[[Sequence[str] | None], Iterator[str]]
"""The texts of some files, or of the run's own data for None; the same at every call."""


def corpus(task: Task | None = None, raw: Mapping[str, Dataset] | None = None) -> Corpus:
    """A reader of texts.

    Args:
        task: determines the text columns of tables; without one only plain text can be read.
        raw: the splits of the run, as stored.

        Returns:
        A function that yields the texts of files: of a table (csv, tsv, json lines, parquet) the columns that
        the task reads, of any other file every line that is not blank. It raises CookError for a file that
        cannot be read.
    """

    def texts(paths: Sequence[str] | None) -> Iterator[str]:
        if paths is None:
            for dataset in (raw or {}).values():
                if task is not None:
                    yield from task.texts(dataset)
            return
        for path in paths:
            yield from _texts(Path(path), task)

    return texts


def _texts(path: Path, task: Task | None) -> Iterator[str]:
    table = path.suffix.lower() in DATA_SUFFIXES and path.suffix.lower() != ".txt"
    if table and task is None:
        hint = "give a text file with a text a line"
        raise CookError(f"{path} is a table, and without data no column is known to hold text", hint=hint)
    try:
        if table and task is not None:
            yield from task.texts(
                tables.read([path], delimiter=task.data.delimiter, encoding=task.data.encoding)
            )
        else:
            lines = read_lines(path, task.data.encoding if task is not None else None)
            yield from (line for line in lines if line.strip())
    except OSError as failure:
        raise CookError(f"{path} cannot be read: {failure.strerror or failure}") from failure
    except Unreadable as failure:
        named = str(path) in str(failure)
        raise CookError(str(failure) if named else f"{path}: {failure}", hint=failure.hint) from failure
    except ValueError as failure:
        raise CookError(str(failure)) from failure
