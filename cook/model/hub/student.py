"""The student of a recipe: fewer layers of a model, a smaller model of its family, or another model.

A student made by layers or config is a plain model: its config alone rebuilds it, so it loads without cook.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from cook.errors import CookError, nearest
from cook.model.arch.anatomy import Anatomy
from cook.model.edits.depth import droppable, shorten
from cook.model.hub import load
from cook.model.hub.quantizer import blueprint_of
from cook.model.hub.source import Refuse, plain
from cook.model.probe.loading_errors import LOADING_ERRORS

LABELS = ("id2label", "label2id", "num_labels", "problem_type")
VOCABULARY = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
IMAGES = ("image_size", "num_channels")
BOOKKEEPING = frozenset(
    "model_type transformers_version _name_or_path architectures dtype quantization_config".split()
)
"""Config keys that describe a folder rather than the model."""


def make(
    source: PreTrainedModel, section: Mapping[str, Any], error: Refuse, *, auto_class: str | None = None
) -> PreTrainedModel:
    """Create the student described by a section; the source is unchanged.

    Args:
        source: on the meta device for a student without weights.
        section: one of
            `layers`: numbers of the layers to keep, increasing; negative ones count from the end. All
            other modules are kept, weights are copied, and all of them are trainable.
            `config`: keys of the source's config to change, or with another `model_type` that family's keys;
            weights are random, from torch's generator.
            `path`: another model, with `revision`, `trust_remote_code`, `allow_pickle`.
            For `path` and another family `attention` may name the implementation.
        error: error(key, message, hint) creates the CookError; `key` is relative to the section.
        auto_class: the class the source was loaded through; default: the one that contains its class.

    Returns:
        The student on the source's device, in its dtype and mode, with its labels, and an `Origin` of its
        own. For `layers` and `config` the stored dtype and bytes in it are the source's.

    Raises:
        CookError: a layer does not exist, the config has no such key or builds no model, or the other
            model cannot be loaded or has other labels.
    """
    for key in ("revision", "trust_remote_code", "allow_pickle"):
        if section.get(key) and section.get("path") is None:
            raise error(key, "is about a student's path, and there is none", "leave it out")
    if section.get("layers") is not None:
        student = _shallower(source, list(section["layers"]), error)
        origin = replace(load.origin_of(source), notes=[])
    elif section.get("config") is not None:
        student = _smaller(source, section, error, auto_class)
        note = "the student starts from random weights"
        origin = replace(load.origin_of(source), notes=[note], new_head=True)
    else:
        student = _other(source, section, error, auto_class or _auto_class(source, "path", error))
        origin = load.origin_of(student)
    _check_reads(source, student, section, error)
    student.cook_origin = origin  # type: ignore[assignment]
    return student.train(source.training)


def _shallower(source: PreTrainedModel, numbers: list[int], error: Refuse) -> PreTrainedModel:
    kind = source.config.model_type
    if blueprint_of(source).edits:
        message = "the model was reshaped by cook: its config alone does not say how large its layers are"
        raise error("layers", message, "start from the model that it was made of, or give student.config")
    anatomy, way_out = Anatomy(source), "give student.config or student.path"
    if anatomy.family is None:
        message = f"cook does not know where the layers of a {kind!r} model are"
        raise error("layers", message, way_out)
    try:
        layers = droppable(anatomy)
    except CookError as refused:
        raise error("layers", refused.message, way_out) from refused
    if anatomy.mixed:
        message = f"a {kind} model has layers of several kinds"
        raise error("layers", message, f"use prune.layers, or {way_out}")
    kept = _kept(numbers, len(layers), error)
    config = copy.deepcopy(source.config)
    shorten(config, kept, len(layers))
    student = _build(source, type(source), config)
    places = {f"{layers[old]}.": f"{new}." for old, new in zip(kept, Anatomy(student).layers, strict=True)}
    try:
        _copy(source, student, layers[0].rpartition(".")[0], places)
    except RuntimeError as failure:
        text = " ".join(str(failure).split())[:300]
        message = f"this {type(source).__name__} is not what its config says: {text}"
        raise error("layers", message, None) from failure
    return student


def _kept(numbers: Sequence[int], count: int, error: Refuse) -> list[int]:
    """The layer numbers, counted from 0."""
    has = f"the model has {count} layers, 0 to {count - 1}"
    for number in numbers:
        if not -count <= number < count:
            raise error("layers", f"there is no layer {number}: {has}", None)
    kept = [number % count for number in numbers]
    for first, second in pairwise(kept):
        if second <= first:
            twice = f"layer {second} stands twice" if first == second else f"{second} comes after {first}"
            hint = f"name each layer once, in increasing order; {has}"
            raise error("layers", f"{list(numbers)} does not increase: {twice}", hint)
    return kept


def _copy(source: PreTrainedModel, student: PreTrainedModel, path: str, places: Mapping[str, str]) -> None:
    """Copy the source's weights to the student.

    Args:
        path: of the list of layers.
        places: prefixes of a layer's names, in the source and in the student.
    """

    def named(name: str) -> str | None:
        if not name.startswith(f"{path}."):
            return name
        begin = f"{path}.{name.removeprefix(f'{path}.').partition('.')[0]}."
        return places[begin] + name.removeprefix(begin) if begin in places else None

    state = {new: value for name, value in source.state_dict().items() if (new := named(name)) is not None}
    student.load_state_dict(state)
    if getattr(source, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(source.generation_config)


def _smaller(
    source: PreTrainedModel, section: Mapping[str, Any], error: Refuse, auto_class: str | None
) -> PreTrainedModel:
    import transformers

    given: dict[str, Any] = plain(section["config"])
    ours = source.config.model_type
    family = given.pop("model_type", None) or ours
    if family != ours and family not in CONFIG_MAPPING:
        hint = nearest(str(family), CONFIG_MAPPING)
        raise error("config.model_type", f"transformers knows no family {family!r}", hint)
    kind = type(source.config) if family == ours else CONFIG_MAPPING[family]
    try:
        inherited = _said(source.config) if family == ours else _shared(source.config, kind)
        _check_keys(given, source.config if family == ours else kind(), error)
        aliases = getattr(kind, "attribute_map", {})
        config = kind(**{**inherited, **{aliases.get(key, key): value for key, value in given.items()}})
        if (layers := getattr(config, "num_hidden_layers", 1)) < 1:
            raise error("config", f"a student has at least one layer, found {layers}", None)
        if family == ours:
            return _build(source, type(source), config)
        config.architectures = []  # if several classes are possible, an Auto class searches this list
        auto = getattr(transformers, auto_class or _auto_class(source, "config", error))
        return _build(source, auto, config, section.get("attention"))
    except CookError:
        raise
    except LOADING_ERRORS as failure:
        text = " ".join(str(failure).split())[:300] or type(failure).__name__
        raise error("config", f"no {family} model can be built from it: {text}", None) from failure


def _said(config: PreTrainedConfig) -> dict[str, Any]:
    """The independent values of a config: all except those its class derives from others.

    A head width derived from the model's width would be wrong for another width.
    """
    kind = type(config)
    values = {key: value for key, value in config.to_dict().items() if key not in BOOKKEEPING}

    def derived(key: str) -> bool:
        try:
            fresh = kind(**{name: value for name, value in values.items() if name != key})
        except LOADING_ERRORS:
            return False
        return bool(fresh.to_dict().get(key) == values[key])

    # By convention in transformers, None requests the derived value.
    optional = {name for name, each in inspect.signature(kind).parameters.items() if each.default is None}
    optional -= {*LABELS, *VOCABULARY}
    return {key: value for key, value in values.items() if key not in optional or not derived(key)}


def _shared(config: PreTrainedConfig, kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """Values for a config of another family: labels, and the input format."""
    known = kind().to_dict()
    names = [name for name in (*LABELS, *VOCABULARY, *IMAGES) if name != "num_labels"]
    return {name: getattr(config, name) for name in names if name in known and hasattr(config, name)}


def _check_keys(given: Mapping[str, Any], config: PreTrainedConfig, error: Refuse) -> None:
    known = sorted({*config.to_dict(), *getattr(config, "attribute_map", {})} - BOOKKEEPING)
    for key in given:
        if key in LABELS:
            raise error(f"config.{key}", "the student's labels are the model's", "leave it out")
        if key not in known:
            message = f"the config of a {config.model_type} model has no key {key!r}"
            raise error(f"config.{key}", message, nearest(key, known) or f"its keys are {', '.join(known)}")


def _check_reads(
    source: PreTrainedModel, student: PreTrainedModel, section: Mapping[str, Any], error: Refuse
) -> None:
    """Check that the input format is the same, since it is prepared once. Tokens are checked by tokenizer."""
    other = section.get("path") is not None
    for name, source_value, student_value in unlike(
        source.config, student.config, IMAGES if other else (*IMAGES, "vocab_size")
    ):
        message = f"the student reads what the model reads: its {name} is {source_value}, not {student_value}"
        raise error("path" if other else f"config.{name}", message, None if other else "leave it out")


def unlike(
    one: PreTrainedConfig, other: PreTrainedConfig, names: Sequence[str] = IMAGES
) -> list[tuple[str, Any, Any]]:
    """The first input property in which two models differ: its name, and both values. A property missing in
    one of them is no difference."""
    shared = [name for name in names if None not in (getattr(one, name, None), getattr(other, name, None))]
    values = [(name, getattr(one, name), getattr(other, name)) for name in shared]
    return [each for each in values if _sides(each[1]) != _sides(each[2])]


def _sides(size: int | Sequence[int]) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _other(
    source: PreTrainedModel, section: Mapping[str, Any], error: Refuse, auto_class: str
) -> PreTrainedModel:
    ours: Any = source.config
    names = [ours.id2label[index] for index in sorted(ours.id2label)]
    on_meta = source.device.type == "meta"
    student = load.load(
        section, auto_class=auto_class, labels=names, dtype=source.dtype, meta=on_meta, error=error
    )
    if load.origin_of(student).new_head:
        student.config.problem_type = ours.problem_type
    elif "Classification" in auto_class and student.config.label2id != ours.label2id:
        message = f"the student's labels are {student.config.label2id}, the model's are {ours.label2id}"
        hint = "use a student with the same labels in the same order, or one without a head"
        raise error("path", message, hint)
    moved: Any = student
    made: PreTrainedModel = moved.to(source.device)
    return made


def _build(
    source: PreTrainedModel, kind: Any, config: PreTrainedConfig, attention: str | None = None
) -> PreTrainedModel:
    """A randomly initialised model on the source's device. `kind` is its class, or an Auto class."""
    options: dict[str, Any] = {"dtype": source.dtype}
    if kind is type(source):
        attention = source.config._attn_implementation
    if attention is not None:
        options["attn_implementation"] = attention
    with torch.device(source.device):
        made = kind._from_config if kind is type(source) else kind.from_config
        student: PreTrainedModel = made(config, **options)
    return student


def _auto_class(source: PreTrainedModel, key: str, error: Refuse) -> str:
    """The Auto class that creates models of the source's class."""
    from transformers.models.auto import modeling_auto

    config = type(source.config)
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        known = name.startswith("AutoModel") and name != "AutoModelForPreTraining"
        if not known or mapping is None or config not in mapping:
            continue
        found = mapping[config]
        if type(source) in (found if isinstance(found, (tuple, list)) else (found,)):
            return name
    message = f"cook does not know what a {type(source).__name__} is for"
    raise error(key, message, "give student.layers")
