"""Runs a teacher over every row of a dataset: order, batches, and checks of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor

from cook.data import batches
from cook.data.rows import cache
from cook.data.tasks import Task
from cook.errors import CookError, RunError
from cook.progress import bar
from cook.teacher.cache import Numbers, Order, Part

Ask: TypeAlias = Callable[[batches.Batch], dict[str, Tensor]]
"""Computes all requested outputs of a teacher for a batch, by name."""

ROUNDING = 1e-3
"""How much padding may change logits, relative to the largest one; in half precision, 20 roundings."""


class CacheBuilder:
    """The rows in batches of equal lengths, longest first, determined by the rows and the batch size alone.

    Args:
        task: collates batches.
        rows: prepared.
        accelerator: device and precision.
        batch_size: rows per batch.

    Attributes:
        left: whether rows are padded on the left.
    """

    def __init__(self, task: Task, rows: Dataset, accelerator: Accelerator, batch_size: int):
        self.task, self.rows, self.accelerator, self.batch_size = task, rows, accelerator, batch_size
        self.order = Order(batches.lengths(rows), len(rows))
        self._short, self._long = (int(self.order.rows[end]) for end in (-1, 0))
        self._both = self._batch([self._short, self._long])
        mask = self._both.get("attention_mask")
        self.left = mask is not None and not bool(mask[:, 0].all())

    def key(self) -> str:
        """The hash of the teacher's inputs, including padding."""
        columns = [name for name in self.rows.column_names if name != "labels"]
        seen = {name: value for name, value in self._both.items() if name != "labels"}
        return cache.key(rows=cache.of_rows(self.rows, columns), batch=cache.of_tensors(seen))

    def names(self, ask: Ask) -> list[str]:
        """The names of the outputs for a batch."""
        return sorted(self._asked(ask, self._both))

    def say(self, line: str) -> None:
        """Print a line once for all processes."""
        if self.accelerator.is_main_process:
            self.task.say(line)

    def parts(self, ask: Ask, dtype: str | None) -> dict[str, Part]:
        """The storage format of each tensor: dimensions that grow with the tokens are found by trial.

        Args:
            dtype: for floating-point tensors; None keeps theirs.

        Raises:
            CookError: a tensor grows differently or has no row per example, or a row's outputs depend on its
                padding.
        """
        lengths = self._tokens(self._short), self._tokens(self._long)
        one, other = (self._asked(ask, self._batch([row])) for row in (self._short, self._long))
        both = self._asked(ask, self._both)
        found = {}
        for name, tensor in one.items():
            if len(both[name]) != 2:
                hint = "leave out teacher.cache, or what learns from that tensor"
                message = f"{name} is one for all examples of a batch: it cannot be kept by example"
                raise CookError(message, where="teacher", hint=hint)
            sizes = list(zip(tensor.shape[1:], other[name].shape[1:], strict=True))
            if any(pair[0] != pair[1] and pair != lengths for pair in sizes):
                message = f"{name} grows otherwise than with the tokens: it cannot be kept"
                hint = "leave out teacher.cache, or what learns from that tensor"
                raise CookError(message, where="teacher", hint=hint)
            kept = (dtype if tensor.is_floating_point() else None) or str(tensor.dtype).removeprefix("torch.")
            found[name] = Part(
                kept, tuple(size if size == other_size else None for size, other_size in sizes)
            )
        if lengths[0] != lengths[1]:
            tokens = self.order.tokens[[self._short]]
            for name in sorted({"logits", "logits.values"} & found.keys()):
                alone, padded = (each[name][:1] for each in (one, both))
                _check_padding(*(found[name].trimmed(each, tokens, self.left) for each in (alone, padded)))
        return found

    def blocks(self, ask: Ask, parts: dict[str, Part], *, progress: bool) -> Iterator[dict[str, Tensor]]:
        """The outputs for all rows, in blocks as expected by `cache.write`.

        Raises:
            RunError: a value is not finite.
        """
        shown = progress and self.accelerator.is_main_process
        with bar(len(self.rows), shown=shown, unit="rows") as drawn:
            for start in range(0, len(self.rows), self.batch_size):
                numbers = self.order.rows[start : start + self.batch_size]
                outputs, tokens = self._asked(ask, self._batch(numbers)), self.order.tokens[numbers]
                block = {name: part.trimmed(outputs[name], tokens, self.left) for name, part in parts.items()}
                for name, flat in block.items():
                    _check_finite(name, flat, numbers, parts[name].sizes(tokens))
                yield block
                drawn.update(len(numbers))

    def _asked(self, ask: Ask, batch: batches.Batch) -> dict[str, Tensor]:
        with self.accelerator.autocast():
            return ask(batch)

    def _batch(self, numbers: Iterable[int]) -> batches.Batch:
        made = self.task.collate(batches.fetch(self.rows, [int(number) for number in numbers]))
        return batches.placed(made, self.accelerator.device)

    def _tokens(self, row: int) -> int:
        return int(self.order.tokens[row])


def _check_padding(alone: Tensor, padded: Tensor) -> None:
    moved = float((alone.float() - padded.float()).abs().nan_to_num(0).max())
    allowed = max(ROUNDING, 20 * torch.finfo(alone.dtype).eps)
    if moved > allowed * float(alone.float().abs().nan_to_num(0).max()):
        raise CookError(
            f"the teacher's answer to an example depends on its padding: it moves by {moved:.2g}",
            where="teacher",
            hint="leave out teacher.cache, or use a tokenizer whose padding_side is right: positions that "
            "are counted from the left move with a padding there",
        )


def _check_finite(name: str, flat: Tensor, rows: Numbers, sizes: Numbers) -> None:
    # Excluded classes have a logit of -inf.
    wrong = ~(flat < torch.inf) if name.startswith("logits") else ~flat.isfinite()
    if bool(wrong.any()):
        first = int(wrong.int().argmax())
        row = int(rows[np.searchsorted(np.cumsum(sizes), first, side="right")])
        raise RunError(
            f"the teacher's {name} are not finite for row {row} of the training data, counted from 0",
            hint="look at the teacher's weights and at that row, or compute and keep it in more: "
            "teacher.dtype and teacher.cache.dtype: float32",
        )
