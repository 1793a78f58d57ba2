"""Teachers with cached outputs: each runs once over the training data, before the first step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from cook.data.rows import cache
from cook.data.tasks import Task
from cook.distill.losses import truncated
from cook.errors import CookError
from cook.failures import evaluation_memory_errors
from cook.model.nn.hooks import Hooks
from cook.model.probe.batch import ROWS
from cook.teacher.cache import AnswerCache, write
from cook.teacher.cache_builder import CacheBuilder
from cook.teacher.teacher import Teacher

KIND = "answers"
"""The suffix of cache files."""

HALF_KEY = 20
"""The digits of a key that identify the teacher; the others identify the rows."""


class CachedTeacher(Teacher):
    """A teacher that runs over each row once, in `fill`, and is then read from a file.

    Its outputs equal those of the live teacher, except for rounding due to different padding, the dtypes
    requested by `dtype`, and logits by token, of which only the `top` are kept if there are over twice as
    many classes: then `top` returns them, at the temperatures requested by `soften`, and `outputs` has none
    (watch `logits` to keep all). Padding is 0 in all tensors. Rotated queries and keys of a model padded on
    the left are rotated as without padding; their products are the same.

    Args:
        model: used by this teacher only: its weights are freed once it has run.
        hooks: of the session; this teacher has its own, which are removed earlier.
        weight: relative to other teachers.
        top: number of classes to keep.
        dtype: of stored floating-point tensors; None keeps those of the teacher.
    """

    by_row = True

    def __init__(
        self,
        model: PreTrainedModel,
        hooks: Hooks,
        weight: float = 1.0,
        *,
        top: int = 64,
        dtype: str | None = None,
    ):
        self._hooks = Hooks()
        super().__init__(model, self._hooks, weight)
        self._top, self._dtype = top, dtype
        self._watched: set[str] = set()
        self._temperatures: set[float] = set()
        self._answers: AnswerCache | None = None
        self._left = False
        self._device: torch.device | str = "cpu"
        self._told: dict[str, Tensor] = {}

    def watch(self, name: str) -> None:
        super().watch(name)
        self._watched.add(name)

    def soften(self, temperature: float) -> None:
        self._temperatures.add(float(temperature))

    @property
    def wanted(self) -> bool:
        """Whether a pass requests any output."""
        return bool(self._watched or self._temperatures)

    def set_batch(self, batch: Mapping[str, Tensor]) -> None:
        super().set_batch(batch)
        self._told = {}

    def place(self, device: torch.device | str) -> None:
        self._device = device
        if self._answers is None:
            super().place(device)

    @property
    def outputs(self) -> Any:
        if self._answers is None:
            return super().outputs
        if self._outputs is None:
            whole = "logits" in self._answers.parts
            self._outputs = ModelOutput(logits=self._read("logits")) if whole else ModelOutput()
        return self._outputs

    def tensor(self, name: str) -> Tensor:
        return super().tensor(name) if self._answers is None else self._read(name)

    def top(self, temperature: float) -> tuple[Tensor, Tensor, Tensor] | None:
        if self._answers is None or "logits" in self._answers.parts:
            return None
        values, indices, rest = map(self._read, _top_names(temperature))
        return values, indices, rest

    @property
    def finite(self) -> bool:
        return self._answers is not None or super().finite

    def fill(
        self, task: Task, rows: Dataset, accelerator: Accelerator, *, batch_size: int, progress: bool = False
    ) -> None:
        """Load the teacher's outputs for all rows, or compute them; then free its weights.

        Order and batches depend on the rows and `batch_size` only, so a lost file is recreated alike. With
        several processes the first one writes.

        Args:
            task: collates batches, and prints what is computed and why.
            rows: prepared; batches refer to their indices.
            accelerator: device and precision.
            batch_size: rows per batch; batches have rows of equal length.
            progress: whether to show a progress bar.

        Raises:
            CookError: the teacher's outputs for a row depend on its padding.
            RunError: a value is not finite, or memory or disk space is insufficient.
        """
        if self.model.config.is_encoder_decoder:
            hint = "leave out teacher.cache"
            raise CookError(
                "the answers of an encoder with a decoder cannot be kept", where="teacher", hint=hint
            )
        self.place(accelerator.device)
        builder = CacheBuilder(task, rows, accelerator, batch_size)
        key = self._key(builder)
        with accelerator.main_process_first(), evaluation_memory_errors(batch_size):
            answers = _found(key, builder) or self._asked(key, builder, progress)
        self._hooks.close()
        self.forget()
        self._answers, self._left = answers, builder.left
        self.model.to("meta")

    def _key(self, builder: CacheBuilder) -> str:
        computed = builder.accelerator.mixed_precision, builder.accelerator.device.type, builder.batch_size
        names = builder.names(self._say)
        teacher = cache.key(
            model=cache.of_tensors(self.model.state_dict(), cache.of_config(self.model)),
            names=names,
            kept=[self._dtype, self._top if "logits.values" in names else None],
            computed=computed,
            versions=[torch.__version__, transformers.__version__],
        )
        return teacher[:HALF_KEY] + builder.key()[:HALF_KEY]

    def _asked(self, key: str, builder: CacheBuilder, progress: bool) -> AnswerCache:
        def ask(path: Path) -> None:
            parts = builder.parts(self._say, self._dtype)
            size = sum(part.bytes(builder.order.tokens) for part in parts.values()) / 1e6
            builder.say(f"the teacher runs over {len(builder.rows):,} rows, once; {size:,.1f} MB are kept")
            blocks = builder.blocks(self._say, parts, progress=progress)
            write(path, key, builder.order, parts, blocks)

        started = time.monotonic()
        path = cache.put(key, KIND, ask)
        builder.say(f"the teacher's answers are kept in {path.parent}: {time.monotonic() - started:.1f} s")
        return AnswerCache(path, key, builder.order)

    def _say(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All outputs to be stored for a batch, by name."""
        self.set_batch(batch)
        logits = self.outputs.logits
        outputs = {name: self.tensor(name) for name in sorted(self._watched)}
        if logits.dim() == 2 or logits.shape[-1] <= 2 * self._top:
            outputs["logits"] = logits
        elif "logits" not in outputs:
            for temperature in sorted(self._temperatures):
                kept = truncated.top(logits, self._top, temperature)
                outputs |= zip(_top_names(temperature), kept, strict=True)
        self.set_batch({})
        return outputs

    def _read(self, name: str) -> Tensor:
        if name not in self._told:
            assert self._answers is not None
            if ROWS not in self._batch:
                hint = "cook.run, and cook.apply with data, make batches that say it"
                raise CookError(
                    "a batch for a cached teacher says which rows it holds", where="teacher", hint=hint
                )
            rows = self._batch[ROWS].cpu().numpy()
            longest = self._batch[self.model.main_input_name].shape[1]
            self._told[name] = self._answers.read(name, rows, longest, self._left).to(self._device)
        return self._told[name]


def fill(
    teachers: Iterable[Teacher],
    task: Task,
    rows: Dataset,
    accelerator: Accelerator,
    *,
    batch_size: int,
    progress: bool = False,
) -> None:
    """Fill the cached teachers that a pass uses; see `CachedTeacher.fill`."""
    for each in teachers:
        if isinstance(each, CachedTeacher) and each.wanted:
            each.fill(task, rows, accelerator, batch_size=batch_size, progress=progress)


def _top_names(temperature: float) -> tuple[str, str, str]:
    return "logits.values", "logits.indices", f"logits.rest {temperature:g}"


def _found(key: str, builder: CacheBuilder) -> AnswerCache | None:
    """The cached outputs under `key`, if present and valid; prints why not."""
    again = "the teacher runs over the data again"
    say = builder.say
    path = cache.find(key, KIND, lambda name: say(f"the cached answers {name} are damaged: {again}"))
    if path is not None:
        try:
            answers = AnswerCache(path, key, builder.order)
            say(f"the teacher's answers are read from {path.parent}")
            return answers
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            say(f"the cached answers {path.name} are not what the name says ({problem}): {again}")
            path.unlink(missing_ok=True)
    elif any(cache.folder().glob(f"{key[:HALF_KEY]}*.{KIND}")):
        say("the cached answers of this teacher are about other data: it runs over these")
    return None
