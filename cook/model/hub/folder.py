"""Model folders: written atomically, and verified by loading them in a fresh process."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from cook.disk import sync
from cook.errors import CookError, RunError
from cook.model.edits.blueprint import Blueprint
from cook.model.hub import METHOD
from cook.model.hub.quantizer import CookConfig
from cook.model.hub.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_HEADER = 100_000_000
"""The limit of the safetensors format on its header, in bytes."""

WEIGHTS = ("*.safetensors", "*.bin")
"""Names of weight files; a folder without one is not a model, even if it has a config.json."""


def cast(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """`model` itself if it has `dtype` already (or `dtype` is None), else a converted copy.

    Integers stay integers, and their scales float32.
    """
    return model if dtype in (None, model.dtype) else copy.deepcopy(model).to(dtype)  # type: ignore[arg-type]


def save(
    model: PreTrainedModel,
    path: str | Path,
    *,
    processor: Any | None = None,
    dtype: torch.dtype | None = None,
    shard_size: str = "5GB",
    extra: Mapping[str, str | bytes] | None = None,
    force: bool = False,
) -> None:
    """Write a model folder atomically: to a temporary sibling, flushed to disk, then renamed.

    Args:
        model: plain, or with a quantizer attached.
        path: the folder; its parents are created.
        processor: a tokenizer or image processor to save with the model.
        dtype: of the floats that are written; None for the model's own. See `cast`.
        shard_size: the maximum size of a weight file, in the notation of transformers.
        extra: further files: relative name -> content.
        force: replace an existing model folder.

    Raises:
        CookError: `path` exists.
        RunError: writing failed; what existed at `path` is untouched.
    """
    final = Path(path).expanduser().absolute()
    partial = final.with_name(f".{final.name}.partial")
    check_free(final, force=force)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with quiet():
            cast(model, dtype).save_pretrained(partial, max_shard_size=shard_size)
        for file in partial.glob("*.safetensors"):  # some versions create them readable by the owner only
            shutil.copymode(partial / "config.json", file)
        if processor is not None:
            save_processor(processor, partial)
        for name, content in (extra or {}).items():
            write(partial, name, content)
        publish(partial, final, force=force)
    except (OSError, SafetensorError) as failure:
        raise _cannot_write(final, failure) from failure
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_processor(processor: Any, folder: str | Path) -> None:
    """Write a tokenizer or image processor into a folder.

    Raises:
        OSError: writing failed.
    """
    try:
        processor.save_pretrained(folder)
    except Exception as failure:
        # The tokenizers library raises a bare Exception for operating system errors.
        if isinstance(failure, OSError) or "os error" not in str(failure):
            raise
        raise OSError(str(failure)) from failure


def publish(draft: Path, final: Path, *, force: bool = False) -> None:
    """Flush a finished folder to disk and rename it to its final path, on the same disk.

    Args:
        draft: the complete folder; it no longer exists afterwards.
        final: the target; an existing model folder is replaced only with `force`.

    Raises:
        CookError: `final` exists.
        RunError: writing failed; what existed at `final` is untouched.
    """
    check_free(final, force=force)
    former = final.with_name(f".{final.name}.former")
    try:
        if former.exists() and not final.exists():
            former.rename(final)
        shutil.rmtree(former, ignore_errors=True)
        _flush(draft)
        if final.exists():
            final.rename(former)
        try:
            draft.rename(final)
        except OSError:
            if former.exists():
                former.rename(final)
            raise
        sync(final.parent)
        shutil.rmtree(former, ignore_errors=True)
    except OSError as failure:
        raise _cannot_write(final, failure) from failure


def _cannot_write(final: Path, failure: Exception) -> RunError:
    reason = getattr(failure, "strerror", None) or str(failure)
    return RunError(f"the folder cannot be written: {reason}", where=str(final))


def check_free(path: str | Path, *, force: bool = False) -> None:
    """Check that an output path is free.

    Args:
        path: where a model folder is to be written.
        force: whether an existing model folder may be replaced: one with a config.json and weights that is
            not a git repository and contains neither the home nor the current directory.

    Raises:
        CookError: something exists there that may not be replaced.
    """
    final = Path(path).expanduser()
    if final.is_symlink():  # renaming would replace the link by a folder, or fail at the end
        target = f"give the folder that it points to: {os.path.realpath(final)}"
        raise CookError("there is a link where the folder should go", where=str(path), hint=target)
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not final.is_dir():
        raise CookError("there is a file where the folder should go", where=str(path))
    if not force:
        hint = "choose another path; --force replaces it"
        raise CookError("the folder exists already", where=str(path), hint=hint)
    hint = "only a model folder is replaced; choose another path, or remove it yourself"
    if not (final / "config.json").is_file() or not any(any(final.glob(kind)) for kind in WEIGHTS):
        raise CookError("the folder exists and holds no model", where=str(path), hint=hint)
    if (final / ".git").exists():
        raise CookError("the folder exists and is a git repository", where=str(path), hint=hint)
    inside = final.resolve()
    if any(each.is_relative_to(inside) for each in (Path.cwd(), Path.home().resolve())):
        raise CookError("the folder holds the home or the current folder", where=str(path), hint=hint)


def weight_bytes(folder: str | Path) -> int:
    """Total bytes of all tensors in the safetensors files of a folder, without headers.

    Raises:
        CookError: there are none, or one is damaged.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise CookError("there is no safetensors file", where=str(folder))
    total = 0
    for file in files:
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(8), "little")
        payload = file.stat().st_size - 8 - header
        if header > MAX_HEADER or payload < 0:
            raise CookError("the file is damaged: its header is cut off", where=str(file))
        total += payload
    return total


def read_blueprint(folder: str | Path) -> Blueprint | None:
    """The Blueprint of a saved folder, or None for a plain one.

    Raises:
        CookError: config.json is missing or damaged, or its Blueprint is invalid.
    """
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as failure:
        raise CookError(f"it cannot be read: {failure.strerror}", where=str(file)) from failure
    except (ValueError, RecursionError) as failure:
        raise CookError(f"it is not JSON: {failure}", where=str(file)) from failure
    given = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(given, dict) or given.get("quant_method") != METHOD:
        return None
    return Blueprint.from_dict(CookConfig.from_dict(given).blueprint)


def write(root: Path, name: str, content: str | bytes) -> None:
    """Write one more file into a folder; `name` may include subfolders.

    Raises:
        RunError: writing failed.
    """
    file = root / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise ValueError(f"{name!r} lies outside of the folder")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as failure:
        raise _cannot_write(file, failure) from failure


def _flush(root: Path) -> None:
    for file in root.rglob("*"):
        if file.is_file():
            sync(file)
    for folder in [*(each for each in root.rglob("*") if each.is_dir()), root]:
        sync(folder)
