"""Model folders: written whole or not at all, and loaded back by a stranger to prove it."""

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
"""The safetensors format's own bound on its header, in bytes."""

WEIGHTS = ("*.safetensors", "*.bin")
"""What weight files are called; a folder without one is no model, whatever config.json it holds."""


def cast(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """`model` itself when it has `dtype` already (or None is asked), else a copy that has.

    Integers stay integers, their scales float32.
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
    """Write a model folder: beside its place, flushed to the disk, then renamed into it.

    Args:
        model: plain, or with a quantizer attached.
        path: the folder; its parents are made.
        processor: a tokenizer or image processor that is saved along.
        dtype: of the floats that are written; None for the model's own. See `cast`.
        shard_size: the largest weight file, as transformers spells it.
        extra: further files: relative name -> content.
        force: replace a model folder that is there already.

    Raises:
        CookError: when `path` is taken.
        RunError: when it cannot be written; what was there before is untouched.
    """
    final = Path(path).expanduser().absolute()
    partial = final.with_name(f".{final.name}.partial")
    check_free(final, force=force)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with quiet():
            cast(model, dtype).save_pretrained(partial, max_shard_size=shard_size)
        for file in partial.glob("*.safetensors"):  # some versions write them for their owner alone
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
        OSError: the disk refuses.
    """
    try:
        processor.save_pretrained(folder)
    except Exception as failure:
        # The tokenizers library raises a bare Exception for what the system refuses.
        if isinstance(failure, OSError) or "os error" not in str(failure):
            raise
        raise OSError(str(failure)) from failure


def publish(draft: Path, final: Path, *, force: bool = False) -> None:
    """Flush a written folder to the disk and rename it into its place, on the same disk.

    Args:
        draft: complete; it is gone afterwards.
        final: where it goes; a model folder that is there is replaced only with `force`.

    Raises:
        CookError: when `final` is taken.
        RunError: when the disk refuses; what was there before is untouched.
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
    """Refuse an output path that is taken.

    Args:
        path: where a model folder is to be written.
        force: whether a model folder may be replaced: one with a config.json and weights, which is no
            repository of git and holds neither the home folder nor the current one.

    Raises:
        CookError: when something is there and may not be replaced.
    """
    final = Path(path).expanduser()
    if final.is_symlink():  # renaming would put a folder in the place of the link, or fail at the end
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
    """Bytes of all tensors in the safetensors files of a folder, without headers.

    Raises:
        CookError: when there is none, or one is damaged.
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
    """The Blueprint of a saved folder, None for a plain one.

    Raises:
        CookError: when config.json is missing or damaged, or its Blueprint is not one.
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
    """Write one more file into a folder; `name` may lie in a folder below.

    Raises:
        RunError: the disk refuses.
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
