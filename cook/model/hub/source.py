"""Checks of a model's source before loading, and readable explanations of loading errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError

from cook.errors import CookError, nearest
from cook.model.probe.loading_errors import LOADING_ERRORS

Refuse = Callable[[str, str, "str | None"], CookError]
"""error(key, message, hint): creates the CookError that points at `key` of the section being read."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def is_local(path: str) -> bool:
    """Whether `path` denotes a local path, existing or not, rather than a hub id."""
    return path.startswith(("/", "./", "../", "~")) or path in (".", "..") or Path(path).exists()


def check(path: str, error: Refuse, *, allow_pickle: bool = False, weights: bool = True) -> None:
    """Check a local path before loading; hub ids are accepted.

    Args:
        path: a folder or a hub id.
        error: creates the CookError.
        allow_pickle: whether weights in formats other than safetensors may be read.
        weights: whether weights are required.

    Raises:
        CookError: the path is missing, not a model, or has no weights that may be read.
    """
    if not is_local(path):
        return
    folder = Path(path).expanduser()
    if not folder.exists():
        siblings = [each.name for each in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise error("path", f"there is no folder {path}", nearest(folder.name, siblings))
    if not folder.is_dir():
        raise error("path", f"{path} is a file, not a model folder", f"give its folder: {folder.parent}")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            hint = "merge the adapter into its model and save that"
            raise error("path", f"{path} holds a PEFT adapter, not a whole model", hint)
        inside = sorted(each.parent.name for each in folder.glob("*/config.json"))
        hint = (
            f"there are models in it: {', '.join(inside)}" if inside else "a model folder has a config.json"
        )
        raise error("path", f"{path} is not a model folder: it has no config.json", hint)
    if not weights or any(folder.glob("*.safetensors")):
        return
    if not any(any(folder.glob(pattern)) for pattern in PICKLES):
        raise error("path", f"{path} holds no weights", "a model folder has a model.safetensors")
    if not allow_pickle:
        message = f"the weights in {path} are pickles, and reading a pickle can run code"
        raise error("path", message, "set allow_pickle: true if you trust where they come from")


def explain(failure: Exception, path: str, auto_class: str) -> tuple[str, str | None]:
    """Explain `failure` in terms of the given `path`: a message, and a hint.

    Args:
        failure: one of LOADING_ERRORS, raised while loading.
        path: the folder or hub id.
        auto_class: the Auto class used for loading.
    """
    text = " ".join(str(failure).split())
    causes = _chain(failure)
    damaged = isinstance(failure, (SafetensorError, EOFError, pickle.UnpicklingError))
    if damaged or "PytorchStreamReader" in text or "invalid magic number" in text:
        return f"a weight file of {path} is damaged: {text}", "copy or download it again"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return (
            f"the hub does not give {path} to you",
            "ask for access on its page, then log in: hf auth login",
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"there is no folder and no model on the hub called {path}", "if it is private: hf auth login"
    if "connect to" in text or "offline" in text.lower():
        message = f"{path} is no folder here, and the hub cannot be reached"
        return message, "check the connection, or give the path of a folder"
    if "trust_remote_code" in text:
        message = f"{path} brings its own Python code"
        return message, "set trust_remote_code: true if you trust its author"
    if "file named" in text and "safetensors" in text:
        hint = "set allow_pickle: true if it has other weights and you trust where they come from"
        return f"{path} has no safetensors weights", hint
    if "Unrecognized configuration class" in text:
        return f"{path} is of a kind that {auto_class} does not know", None
    if "does not recognize this architecture" in text:
        return text.partition("This could")[0].strip(), "a newer transformers may know it"
    return f"{path} cannot be loaded: {text[:300] or type(failure).__name__}", None


def class_name(auto: Any, config: Any) -> str:
    """The class that an Auto class of transformers creates for a config; empty if unsupported."""
    mapping = auto._model_mapping
    if type(config) in mapping:
        found = mapping[type(config)]
        return found[0].__name__ if isinstance(found, (tuple, list)) else found.__name__
    auto_map = getattr(config, "auto_map", None) or {}
    return str(auto_map.get(auto.__name__, "")).rpartition(".")[2]


def auto_class_of(folder: Path) -> str:
    """The Auto class that loads the model in a folder with its head; AutoModel if the config names none.

    Raises:
        CookError: the config cannot be read.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except LOADING_ERRORS as failure:
        message, hint = explain(failure, str(folder), "AutoConfig")
        raise CookError(message, hint=hint) from failure
    heads = [name for name in vars(modeling_auto) if name.startswith("AutoModelFor")]
    named = config.architectures or []
    found = [name for name in heads if class_name(getattr(modeling_auto, name), config) in named]
    return found[0] if found else "AutoModel"


def plain(value: Any) -> Any:
    """Convert frozen mappings and tuples to dicts and lists, recursively."""
    if isinstance(value, (str, bytes)) or value is None:
        return value
    if hasattr(value, "items"):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _chain(failure: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while failure is not None and failure not in causes:
        causes.append(failure)
        failure = failure.__cause__ or failure.__context__
    return causes
