"""Prepared data on disk, named by the hash of its inputs.

An entry is one file: `KEY-DIGEST.arrow` for rows, `KEY-DIGEST.answers` for a teacher's outputs. KEY is the
hash of its inputs (the rows, the processor's files, the options); DIGEST is the hash of the file itself, so
that an incomplete entry is detected, and writing one is a single rename. Files that do not match their own
name are never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, Image
from torch import Tensor
from transformers import PreTrainedModel

from cook.errors import RunError
from cook.model.hub.folder import save_processor
from cook.say import Say, silent

VERSION = 2
"""Part of every key: incremented when the meaning of stored data changes."""
ABANDONED = 24 * 3600
"""Seconds without a write after which an unfinished file is considered abandoned."""


def folder() -> Path:
    """`$COOK_CACHE`, or `~/.cache/cook`."""
    return Path(os.environ.get("COOK_CACHE") or Path.home() / ".cache" / "cook").expanduser()


def key(**parts: Any) -> str:
    """The hash (40 hex digits) of JSON values by name."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def of_rows(dataset: Dataset, columns: Iterable[str], *, files: bool = False) -> str:
    """The hash of the values in `columns`, in row order.

    Image files are hashed by content, which takes less time than decoding them: a file can change without
    a change of name, size or time.

    Args:
        files: whether texts that are file paths also stand for the content of these files.
    """
    chosen = dataset.select_columns(list(columns))
    images = [name for name, feature in chosen.features.items() if isinstance(feature, Image)]
    digest = hashlib.sha256()
    for table in chosen.with_format("arrow").iter(batch_size=1000):
        sink = pa.BufferOutputStream()
        plain = table.replace_schema_metadata(None)
        with pa.ipc.new_stream(sink, plain.schema) as writer:
            writer.write_table(plain.combine_chunks())
        digest.update(memoryview(sink.getvalue()))
        for name in images:
            for value in table[name].to_pylist():
                if value and value["bytes"] is None:
                    digest.update(_content(value["path"]))
        for name in plain.column_names if files else ():
            if pa.types.is_string(plain.schema.field(name).type):
                for value in plain[name].to_pylist():
                    digest.update(_content(value))
    return digest.hexdigest()


def _content(path: str | None) -> bytes:
    """The hash of a file's content, if the path is a file."""
    return _digest(Path(path)).encode() if path is not None and os.path.isfile(path) else b"none"


def of_processor(processor: Any) -> str:
    """The hash of the files saved by a tokenizer or an image processor."""
    digest = hashlib.sha256(type(processor).__name__.encode())
    with tempfile.TemporaryDirectory() as name:
        try:
            save_processor(processor, name)
        except OSError as failure:
            message = f"a temporary copy of the processor cannot be written: {failure}"
            raise RunError(message, where=name, hint="free some space there") from failure
        for path in sorted(Path(name).rglob("*")):
            if path.is_file():
                digest.update(f"\n{path.relative_to(name)}\n".encode())
                digest.update(_lasting(path))
    return digest.hexdigest()


def of_tensors(tensors: Mapping[str, Tensor], told: str = "") -> str:
    """The hash of tensors with their names, dtypes and shapes, and of an additional text."""
    digest = hashlib.sha256(told.encode())
    for name, tensor in tensors.items():
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_config(model: PreTrainedModel) -> str:
    """A text that describes a model without its weights: its classes and its config, but not its path."""
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    attention = getattr(model.config, "_attn_implementation", None)
    return f"{type(model)}\n{model}\n{attention}\n{json.dumps(config, sort_keys=True, default=str)}"


def _lasting(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name != "tokenizer.json":
        return content
    # Tokenizers store the truncation and padding of their last call; cook's are in the options.
    fields = json.loads(content)
    return json.dumps({**fields, "truncation": None, "padding": None}, sort_keys=True).encode()


def stored(key: str, build: Callable[[], Iterable[pa.Table]]) -> Dataset:
    """The entry `key`, memory-mapped; built first if absent or damaged.

    Args:
        key: from `key()`.
        build: returns the rows as tables of one schema.

    Raises:
        RunError: the cache folder cannot be read or written.
    """
    if (path := find(key, "arrow")) is None:
        tables = iter(build())
        first = next(tables)

        def write(unfinished: Path) -> None:
            with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)

        path = put(key, "arrow", write)
    return Dataset.from_file(str(path))


def find(key: str, kind: str, damaged: Say = silent) -> Path | None:
    """The file of the entry `key`, or None; a damaged one is removed.

    Args:
        kind: the file suffix.
        damaged: called with the name of a damaged file.

    Raises:
        RunError: the cache folder cannot be read.
    """
    root = folder()
    try:
        for path in sorted(root.glob(f"{key}-*.{kind}")):
            if path.stem == f"{key}-{_digest(path)}":
                return path
            path.unlink(missing_ok=True)
            damaged(path.name)
    except OSError as problem:  # such as the entry of another user of a shared folder
        hint = "make the folder readable, or set COOK_CACHE to another one"
        raise RunError(f"the cache cannot be read: {problem}", where=str(root), hint=hint) from problem
    return None


def put(key: str, kind: str, write: Callable[[Path], None]) -> Path:
    """Create a file for the entry `key`.

    Args:
        kind: the file suffix.
        write: writes the file at a path.

    Raises:
        RunError: the cache folder cannot be written.
    """
    root = folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _tidy(root)
        handle, name = tempfile.mkstemp(dir=root, prefix=f"{key}-", suffix=".tmp")
        os.close(handle)
        unfinished = Path(name)
        try:
            write(unfinished)
            return unfinished.replace(root / f"{key}-{_digest(unfinished)}.{kind}")
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as problem:
        hint = "make room there, or set COOK_CACHE to another folder"
        raise RunError(f"the cache cannot be written: {problem}", where=str(root), hint=hint) from problem


def _tidy(root: Path) -> None:
    """Remove unfinished files of killed processes."""
    for path in root.glob("*.tmp"):
        with contextlib.suppress(OSError):  # another process may have removed it, or own it
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
