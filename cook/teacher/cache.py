"""A teacher's outputs for every row of a dataset, in one memory-mapped file.

    size             of the header: 8 bytes, little endian
    header           JSON: `key`, and the dtype and row shape of each part; padded with blanks to 64 bytes
    parts            one after another, each with all rows in `Order`, without padding

Row offsets follow from the lengths of the rows, which are those of the dataset.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNED = 64
"""Alignment of parts in bytes."""

Numbers = NDArray[np.int64]


class Order:
    """The order in which rows are computed and stored: longest first, equal lengths in dataset order.

    Args:
        lengths: the tokens of each row; None if all are equal.
        rows: number of rows.
    """

    def __init__(self, lengths: Sequence[int] | None, rows: int):
        self.tokens: Numbers = np.ones(rows, np.int64) if lengths is None else np.asarray(lengths, np.int64)
        self.rows: Numbers = np.argsort(-self.tokens, kind="stable")
        self.place: Numbers = np.empty(rows, np.int64)
        self.place[self.rows] = np.arange(rows)


class Part(NamedTuple):
    """The storage format of one tensor.

    Attributes:
        dtype: a torch dtype name: `float32`.
        shape: of one row; None stands for the row's number of tokens.
    """

    dtype: str
    shape: tuple[int | None, ...]

    @property
    def ragged(self) -> bool:
        return None in self.shape

    def sizes(self, tokens: Numbers) -> Numbers:
        """The number of values in rows with so many tokens."""
        fixed = int(np.prod([size for size in self.shape if size is not None], dtype=np.int64))
        return fixed * tokens ** self.shape.count(None)

    def bytes(self, tokens: Numbers) -> int:
        """The bytes of rows with so many tokens."""
        return int(self.sizes(tokens).sum()) * self.stored.itemsize

    def of(self, tokens: int) -> tuple[int, ...]:
        """The shape of a row with so many tokens."""
        return tuple(tokens if size is None else size for size in self.shape)

    def cut(self, tokens: int, longest: int, left: bool) -> tuple[slice, ...]:
        """The index of a row with so many tokens in a tensor padded to `longest` on the left or right."""
        own = slice(longest - tokens, longest) if left else slice(0, tokens)
        return tuple(own if size is None else slice(0, size) for size in self.shape)

    @property
    def stored(self) -> np.dtype[Any]:
        """The numpy dtype used for reading, which has no bfloat16."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    def trimmed(self, tensor: Tensor, tokens: Numbers, left: bool) -> Tensor:
        """Rows [batch, ...] without their padding, concatenated."""
        tensor = tensor.to(getattr(torch, self.dtype))
        if not self.ragged:
            return tensor.flatten()
        longest = tensor.shape[1 + self.shape.index(None)]
        rows = zip(tensor, tokens.tolist(), strict=True)
        return torch.cat([row[self.cut(count, longest, left)].flatten() for row, count in rows])


def write(
    path: Path, key: str, order: Order, parts: Mapping[str, Part], blocks: Iterable[Mapping[str, Tensor]]
) -> None:
    """Write a file.

    Args:
        blocks: rows in `order`, in blocks of results of `Part.trimmed`, by name.

    Raises:
        OSError: writing failed; if space is insufficient, before the first block is computed.
    """
    header = _header(key, parts)
    starts, size = _starts(len(header), order, parts)
    if (free := shutil.disk_usage(path.parent).free) < size:
        message = f"{size / 1e9:,.3f} GB are needed, {free / 1e9:,.3f} GB are free"
        raise OSError(errno.ENOSPC, message)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
        at = dict(starts)
        for block in blocks:
            for name, rows in block.items():
                data = rows.contiguous().view(torch.uint8).cpu().numpy().data
                file.seek(at[name])
                at[name] += file.write(data)


def _header(key: str, parts: Mapping[str, Part]) -> bytes:
    header = json.dumps({"key": key, "parts": parts}, sort_keys=True).encode()
    header += b" " * (-(8 + len(header)) % ALIGNED)
    return len(header).to_bytes(8, "little") + header


def _starts(first: int, order: Order, parts: Mapping[str, Part]) -> tuple[dict[str, int], int]:
    """The offset of each part, in the order of their names, and the size of the file."""
    starts = {}
    for name in sorted(parts):
        starts[name] = first + -first % ALIGNED
        first = starts[name] + parts[name].bytes(order.tokens)
    return starts, first


class AnswerCache:
    """An open cache file.

    Args:
        path: of a file written by `write`.
        key: the expected key.
        order: of its rows.

    Raises:
        ValueError: the file is invalid or has another key.
    """

    def __init__(self, path: Path, key: str, order: Order):
        self.order = order
        with path.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
            if header > path.stat().st_size:
                raise ValueError("it has no header")
            content = json.loads(file.read(header - 8))
        if content["key"] != key:
            raise ValueError("it is of another teacher or other data")
        self.parts = {name: Part(dtype, tuple(shape)) for name, (dtype, shape) in content["parts"].items()}
        starts, size = _starts(header, order, self.parts)
        if size != path.stat().st_size:
            raise ValueError("it is of another size")
        self._numbers: dict[str, NDArray[Any]] = {}
        self._begins: dict[str, Numbers] = {}
        for name, part in self.parts.items():
            sizes = part.sizes(order.tokens[order.rows])
            shape = (int(sizes.sum()),)
            mapped = np.memmap(path, part.stored, "r", starts[name], shape)
            # As a plain array: slicing the memmap class takes microseconds.
            self._numbers[name] = mapped.view(np.ndarray)
            self._begins[name] = np.cumsum(sizes) - sizes

    def read(self, name: str, rows: Numbers, longest: int, left: bool) -> Tensor:
        """One tensor of some rows, as the teacher would return it: [batch, ...], padded with 0.

        Args:
            rows: their indices in the dataset.
            longest: the length to which all rows are padded.
            left: whether they are padded on the left.
        """
        part, numbers, place = self.parts[name], self._numbers[name], self.order.place[rows]
        if not part.ragged:
            found = numbers.reshape(len(self.order.rows), *part.of(0))[place]
        else:
            tokens = self.order.tokens[rows]
            found = np.zeros((len(rows), *part.of(longest)), numbers.dtype)
            begins = self._begins[name][place].tolist()
            ends = (self._begins[name][place] + part.sizes(tokens)).tolist()
            for into, begin, end, count in zip(found, begins, ends, tokens.tolist(), strict=True):
                into[part.cut(count, longest, left)] = numbers[begin:end].reshape(part.of(count))
        return torch.from_numpy(found).view(getattr(torch, part.dtype))
