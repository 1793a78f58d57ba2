"""Files and their hashes, by which a checkpoint is verified.

`manifest.json` contains the size and the SHA-256 of every other file, and a hash of itself, so that any
changed byte, also in the manifest, is detected.
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
    """torch.save `value`, flush it to disk, and return its entry: `sha256` and `size` in bytes."""
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
    """Write the manifest of `folder`; `files` are the entries returned by `write_part`."""
    content = {"version": VERSION, "step": step, "files": files}
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump({**content, "digest": _seal(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> dict[str, Any]:
    """The manifest: `version`, `step` and `files` (name -> entry).

    Raises:
        ValueError: it is invalid, or written by another version of cook.
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
        # The hash does not authenticate: a name must not point outside of the folder.
        raise ValueError("lists what is no part of a checkpoint")
    return content


def _is_part(name: str, entry: object) -> bool:
    return (
        re.fullmatch(r"[\w-]+\.pt", name, re.ASCII) is not None
        and isinstance(entry, dict)
        and set(entry) == {"sha256", "size"}
    )


def problem(folder: Path, step: int) -> str | None:
    """Describe the damage of the checkpoint of `step` in `folder`; None if every byte is intact."""
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
    except ValueError as error:  # invalid UTF-8, invalid JSON, or a differing hash
        return f"{NAME}: {error}"
    return None


class _Digest:
    """A file that hashes the data written to it, and stores the reason of a failed write.

    torch.save hides an OSError behind a RuntimeError about its archive.
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
        """Does nothing: `write_part` flushes and syncs once, at the end, but torch.save calls this too."""


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
