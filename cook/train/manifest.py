"""Files and the list of their hashes: how a checkpoint knows that it is whole.

`manifest.json` holds the size and the SHA-256 of every file beside it, and a hash of itself, so that a
flipped byte anywhere, the manifest included, is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

NAME = "manifest.json"
VERSION = 1


def write_part(path: Path, value: Any) -> dict[str, Any]:
    """torch.save `value`, force it to the disk, and return its entry: `sha256` and `size` in bytes."""
    with path.open("wb") as file:
        digest = _Digest(file)
        try:
            torch.save(value, digest)  # type: ignore[arg-type]  # it only writes and flushes
        except RuntimeError as error:
            if digest.failure is None:
                raise
            raise digest.failure from error
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hash.hexdigest(), "size": digest.size}


def write(folder: Path, step: int, files: dict[str, dict[str, Any]]) -> None:
    """Write the manifest of `folder`, whose parts `write_part` gave the entries in `files` for."""
    content = {"version": VERSION, "step": step, "files": files}
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump({**content, "digest": _seal(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, Any]:
    """The manifest: `version`, `step` and `files` (name -> entry).

    Raises:
        ValueError: when it is not what `write` wrote, or another version of cook wrote it.
    """
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("was altered") from error
    if not isinstance(content, dict) or content.pop("digest", None) != _seal(content):
        raise ValueError("was altered")
    if content.get("version") != VERSION:
        raise ValueError(f"has version {content.get('version')}, this cook reads {VERSION}")
    files = content.get("files")
    if not isinstance(files, dict) or not all(_is_part(*item) for item in files.items()):
        # Anybody can seal what they wrote: a name must not lead out of the folder.
        raise ValueError("lists what is no part of a checkpoint")
    return content


def _is_part(name: str, entry: object) -> bool:
    return (
        re.fullmatch(r"[\w-]+\.pt", name, re.ASCII) is not None
        and isinstance(entry, dict)
        and set(entry) == {"sha256", "size"}
    )


def problem(folder: Path, step: int) -> str | None:
    """What is wrong with the checkpoint of `step` in `folder`; None when every byte is as written."""
    try:
        content = read(folder)
        if content.get("step") != step:
            return f"{NAME} is of step {content.get('step')}"
        for name, entry in content["files"].items():
            size = (folder / name).stat().st_size
            if size != entry["size"]:
                return f"{name} has {size} bytes where {entry['size']} were written"
            with (folder / name).open("rb") as file:
                if _hash(file) != entry["sha256"]:
                    return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except ValueError as error:  # a byte that is not UTF-8, text that is not JSON, a hash that differs
        return f"{NAME}: {error}"
    return None


class _Digest:
    """A file that hashes what is written to it, and remembers why a write failed.

    torch.save buries an OSError under a RuntimeError about its archive.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.hash, self.size = file, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.hash.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """`write_part` flushes and syncs once, at the end; torch.save asks for it too."""


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
