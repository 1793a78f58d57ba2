"""Loads models and processors from the model section of a recipe: a folder, a hub id, or a config.

Deviations from the source, such as randomly initialised heads and dequantised integers, are listed in
`model.cook_origin.notes`; an unrequested re-initialisation is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cook.errors import CookError
from cook.model.edits.blueprint import Blueprint
from cook.model.hub import METHOD, folder, head, source
from cook.model.hub.adapters import refuse_adapters
from cook.model.hub.quantizer import CookConfig, attach_quantizer, blueprint_of
from cook.model.hub.quiet import quiet
from cook.model.hub.source import Refuse
from cook.model.probe.loading_errors import LOADING_ERRORS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOKENIZER_FILES = ("tokenizer*", "vocab*", "spiece.model", "sentencepiece*", "merges.txt")


@dataclass
class Origin:
    """Provenance of a loaded model.

    Attributes:
        notes: lines for people about differences from the source.
        dtype: of the source's weights; None if there were none, or the source does not state it.
        bytes: of the source's weights, as stored; None if unknown.
        new_head: whether the head is randomly initialised.
    """

    notes: list[str] = field(default_factory=list)
    dtype: torch.dtype | None = None
    bytes: int | None = None
    new_head: bool = False


def load(
    section: Any,
    *,
    auto_class: str,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    meta: bool = False,
    integers: bool = False,
    error: Refuse,
) -> PreTrainedModel:
    """Load the model described by a model section.

    Args:
        section: attributes `path` or `config`; optional `revision`, `labels`, `head`, `trust_remote_code`,
            `allow_pickle`, `attention`. An absent one counts as None. If `head` is `new`, the checkpoint's
            weights outside of its base model are ignored and the head is initialised randomly.
        auto_class: `AutoModelForSequenceClassification` and the like.
        labels: names for a new head; `section.labels` takes precedence. A head loaded from the checkpoint
            keeps its own.
        dtype: of the weights in memory.
        meta: build on the meta device with the Blueprint applied, without loading weights.
        integers: keep the integer layers of a folder written by cook, for inference but not for training.
        error: error(key, message, hint) creates the CookError; `key` is relative to the section.

    Returns:
        The model in eval mode with an `Origin` as `model.cook_origin`. A folder written by cook is
        dequantised to floats unless `integers`, and keeps the rest of its Blueprint
        (`quantizer.blueprint_of`).

    Raises:
        CookError: the source is missing, unreachable, damaged, not a model or refused, or loading it would
            leave weights uninitialised.
    """
    path = _option(section, "path")
    label = "config" if path is None else str(path)
    try:
        with quiet():
            return _load(section, auto_class, labels, dtype, meta, integers, error)
    except CookError:
        raise
    except LOADING_ERRORS as failure:
        message, hint = source.explain(failure, label, auto_class)
        raise error("config" if path is None else "path", message, hint) from failure


def origin_of(model: PreTrainedModel) -> Origin:
    """The provenance of a model returned by `load`."""
    origin = vars(model).get("cook_origin")
    return origin if isinstance(origin, Origin) else Origin()


def load_processor(section: Any, kind: str) -> Any | None:
    """Load the tokenizer or image processor of a model section.

    Args:
        section: attributes `tokenizer` or `path`, optional `revision`, `trust_remote_code`.
        kind: "tokenizer" or "image".

    Returns:
        The processor; None if the section names none and the model's folder has none.

    Raises:
        CookError: there is one and it cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    given = _option(section, "tokenizer") if kind == "tokenizer" else None
    path = given or _option(section, "path")
    if path is None:
        return None
    path = str(path)
    local = source.is_local(path)
    root = Path(path).expanduser()
    names = TOKENIZER_FILES if kind == "tokenizer" else ("preprocessor_config.json", "processor_config.json")
    if local and not any(any(root.glob(name)) for name in names):
        if given is None:
            return None
        needed = "a tokenizer's folder has a tokenizer.json"
        raise CookError(f"{path} holds no {kind}", where="model.tokenizer", hint=needed)
    options: dict[str, Any] = {"trust_remote_code": bool(_option(section, "trust_remote_code"))}
    if given is None and _option(section, "revision"):
        options["revision"] = _option(section, "revision")
    name = str(root) if local else path
    try:
        if kind == "tokenizer":
            return AutoTokenizer.from_pretrained(name, **options)
        return AutoImageProcessor.from_pretrained(name, **options)
    except LOADING_ERRORS as failure:
        if not local and given is None and "connect" not in str(failure) and isinstance(failure, OSError):
            return None
        message, hint = source.explain(failure, path, kind)
        raise CookError(message, where=f"the {kind}", hint=hint) from failure


def _load(
    section: Any,
    auto_class: str,
    labels: Sequence[str] | None,
    dtype: torch.dtype,
    meta: bool,
    integers: bool,
    error: Refuse,
) -> PreTrainedModel:
    import transformers

    auto: Any = getattr(transformers, auto_class)
    options: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": bool(_option(section, "trust_remote_code")),
    }
    if _option(section, "attention"):
        options["attn_implementation"] = _option(section, "attention")
    path = _option(section, "path")
    named = _option(section, "labels")
    if path is None:
        config = _new_config(section, error)
        _refuse_quantised(config, "config", error)
        name_labels(config, named or labels)
        return _described(_from_config(auto, config, options, meta), Origin(new_head=True))
    path = str(path)
    allow_pickle = bool(_option(section, "allow_pickle"))
    source.check(path, error, allow_pickle=allow_pickle, weights=not meta)
    name = str(Path(path).expanduser()) if source.is_local(path) else path
    hub = {"trust_remote_code": options["trust_remote_code"]}
    if _option(section, "revision"):
        hub["revision"] = _option(section, "revision")
    config = transformers.AutoConfig.from_pretrained(name, **hub)
    _complete_labels(config, name, hub)
    blueprint = _refuse_quantised(config, path, error)
    fresh = source.class_name(auto, config) not in (config.architectures or [])
    origin = Origin(dtype=config.dtype if isinstance(config.dtype, torch.dtype) else None, new_head=fresh)
    replaced = not fresh and _option(section, "head") == "new"
    if replaced:
        origin.new_head = fresh = True
        config.problem_type = None  # it described the removed head
    _set_labels(config, path, named, labels, fresh=fresh, error=error)
    if replaced:
        head.check(_from_config(auto, config, options, meta=True), blueprint, error)
    if meta:
        model = _from_config(auto, config, options, meta)
        attach_quantizer(model, blueprint.without("integer").apply(model))
        return _described(model, origin)
    more = {"use_safetensors": None if allow_pickle else True, "ignore_mismatched_sizes": True}
    model, info = auto.from_pretrained(
        name, config=config, output_loading_info=True, **{**options, **hub, **more}
    )
    refuse_adapters(model, lambda message, hint: error("path", f"{path}: {message}", hint))
    if replaced:
        info["mismatched_keys"] = {key for key in info["mismatched_keys"] if not head.holds(model, key[0])}
        parts = ", ".join(head.renew(model))
        origin.notes.append(f"the head of {path} ({parts}) is left out: a new one starts from random weights")
    _check_keys(model, info, path, fresh, origin, error)
    if not integers and any(edit.op == "integer" for edit in blueprint_of(model).edits):
        model = model.dequantize(dtype)
        origin.notes.append(f"the integers of {path} were turned into floats; activations are not rounded")
    origin.bytes = _stored_bytes(name, hub)
    _own_memory(model)
    return _described(model, origin)


def _set_labels(
    config: Any,
    path: str,
    named: Sequence[str] | None,
    labels: Sequence[str] | None,
    *,
    fresh: bool,
    error: Refuse,
) -> None:
    """Name the classes of a head that starts afresh, or rename those of the head that the model brings.

    Args:
        named: by the section.
        labels: of the data.

    Raises:
        CookError: the section names another number of labels than the model's head has.
    """
    if not fresh and named and len(named) != config.num_labels:
        message = f"{len(named)} labels are given, the model in {path} has {config.num_labels}"
        known = f"its labels are {', '.join(map(str, config.id2label.values()))}"
        raise error("labels", message, f"{known}; head: new makes a new head for others")
    if fresh or named:
        name_labels(config, named or labels)


def _option(section: Any, name: str) -> Any:
    if isinstance(section, Mapping):
        return section.get(name)
    return getattr(section, name, None)


def _described(model: Any, origin: Origin) -> PreTrainedModel:
    model.cook_origin = origin
    return model.eval()


def _own_memory(model: PreTrainedModel) -> None:
    """Copy memory-mapped weights: they can be unaligned, which changes the summation order of kernels."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _new_config(section: Any, error: Refuse) -> PreTrainedConfig:
    from transformers import AutoConfig

    given = source.plain(_option(section, "config")) or {}
    model_type = given.pop("model_type", None)
    if not isinstance(model_type, str):
        raise error("config", "it has no model_type", "model_type: bert, vit, gpt2, ...")
    return AutoConfig.for_model(model_type, **given)


def name_labels(config: Any, labels: Sequence[str] | None) -> None:
    if labels:
        config.id2label = {index: str(label) for index, label in enumerate(labels)}
        config.label2id = {str(label): index for index, label in enumerate(labels)}


def _complete_labels(config: Any, name: str, hub: Mapping[str, Any]) -> None:
    """Use the labels of a `config.json` that has only `label2id`: transformers replaces it by defaults."""
    import transformers

    raw, _ = transformers.PreTrainedConfig.get_config_dict(name, **hub)
    given = raw.get("label2id")
    if given and not raw.get("id2label") and set(given.values()) == set(range(len(given))):
        name_labels(config, sorted(given, key=given.__getitem__))


def _from_config(auto: Any, config: Any, options: Mapping[str, Any], meta: bool) -> Any:
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if not meta:
        return auto.from_config(config, **options)
    with torch.device("meta"):
        return auto.from_config(config, **options)


def _refuse_quantised(config: Any, path: str, error: Refuse) -> Blueprint:
    """The Blueprint in a config; CookError if another method quantised the model."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return Blueprint()
    given = given if isinstance(given, Mapping) else given.to_dict()
    method = given.get("quant_method")
    if method != METHOD:
        message = f"{path} is already quantised ({method or 'by an unknown method'})"
        raise error("path", message, "start from the float model that it was made of")
    return Blueprint.from_dict(CookConfig.from_dict(given).blueprint)


def _check_keys(
    model: Any, info: Mapping[str, Any], path: str, fresh: bool, origin: Origin, error: Refuse
) -> None:
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        message = f"{name} in {path} is {tuple(stored)}, the config asks for {tuple(expected)}"
        more = f"{len(mismatched) - 1} more do not fit either" if len(mismatched) > 1 else None
        raise error("path", message, more)
    prefix = f"{model.base_model_prefix}."
    is_base = model.base_model is model
    # A pooler is part of the base model, but only some heads use it and many checkpoints lack it.
    new = [
        key
        for key in sorted(info["missing_keys"])
        if "pooler" in key or not (is_base or key.startswith(prefix))
    ]
    lost = sorted(set(info["missing_keys"]) - set(new if fresh else []))
    if lost:
        message = f"{path} lacks {len(lost)} weights of {type(model).__name__}, such as {lost[0]}"
        raise error(
            "path", message, "they would start at random: the checkpoint is incomplete or another model's"
        )
    if new:
        parts = sorted({key.rpartition(".")[0] for key in new})
        origin.notes.append(f"{path} has no {', '.join(parts)}: new ones start from random weights")


def _stored_bytes(name: str, hub: Mapping[str, Any]) -> int | None:
    from transformers.utils import cached_file

    config = cached_file(name, "config.json", revision=hub.get("revision"), local_files_only=True)
    found = Path(config).parent if config else None
    if found is None or not any(found.glob("*.safetensors")):
        return None
    return folder.weight_bytes(found)
