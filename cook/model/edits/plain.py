"""Moves edits into the config: a model whose layers have equal sizes again becomes a plain one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cook.errors import CookError
from cook.model.arch import units
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.width import stream
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.nn import surgery
from cook.model.nn.linear import is_composite
from cook.model.probe.loading_errors import LOADING_ERRORS

SIZES = ("resize", "counts")
"""The edits that a config may be able to express."""


def current(model: nn.Module, blueprint: Blueprint) -> Blueprint:
    """The Blueprint with one `resize` per module, which states its final sizes.

    A module may lose columns by one pass and rows by another, which records no edit if the config will
    express it: the vocabulary.
    """
    edits: dict[tuple[str, str], Edit] = {}
    for edit in blueprint.edits:
        # A module that is now a composite was resized before, and its factors have their own edits.
        if edit.op == "resize" and not is_composite(surgery.get(model, edit.module)):
            sizes = {axis: units.size(model, edit.module, axis) for axis in ("out", "in")}
            edits.setdefault((edit.op, edit.module), Edit("resize", edit.module, sizes))
        else:
            edits[edit.op, f"{edit.module} {len(edits)}"] = edit
    return Blueprint(edits=list(edits.values()))


def settle(model: PreTrainedModel, blueprint: Blueprint) -> Blueprint:
    """Store the sizes of a model in its config, if it can express all of them.

    This is tested: a model without weights is built from the config, and must have the same parameters and
    the same numbers of heads.

    Args:
        model: edited according to `blueprint`; its config is changed if it suffices.

    Returns:
        The Blueprint without the edits now expressed by the config; the same one if it does not suffice.
    """
    rest = Blueprint(edits=[edit for edit in blueprint.edits if edit.op not in SIZES])
    if len(rest.edits) == len(blueprint.edits):
        return blueprint
    for changes in _said(model):
        if _says_all(model, changes, rest, blueprint):
            for name, value in changes.items():
                setattr(model.config, name, value)
            for module in model.modules():
                if isinstance(own := vars(module).get("config"), surgery.Changed):
                    vars(module)["config"] = own.whole()
            return rest
    return blueprint


def _says_all(
    model: PreTrainedModel, changes: Mapping[str, int], rest: Blueprint, blueprint: Blueprint
) -> bool:
    """Whether a model built from the changed config, with the rest of the edits, matches the given one."""
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    try:
        # As on saving: some families require a width that is a multiple of the number of heads.
        if callable(validate := getattr(config, "validate", None)):
            validate()
        with torch.device("meta"):
            built = type(model)(config)
        rest.apply(built)
    except (CookError, *LOADING_ERRORS):
        return False
    return _shapes(built) == _shapes(model) and _count_alike(built, model, blueprint)


def _said(model: PreTrainedModel) -> list[dict[str, int]]:
    """The sizes of the first layer of each stack, as config keys; nothing for an unknown family.

    Some families read the width of a head from their config only if it is set: with it, and without.
    """
    try:
        anatomy = Anatomy(model)
        several = [*units.heads(anatomy), *units.neurons(anatomy)]
    except CookError:
        return []
    owner: Any = model
    found: dict[str, int] = {}
    width: dict[str, int] = {}
    for each in several:
        words = anatomy.stacks[each.layers[0]].config
        numbers = {"neurons": each.count} if each.kind == "neurons" else {"groups": each.count}
        if each.kind == "heads":
            numbers["heads"] = each.count * each.heads
            width.setdefault("head_dim", each.outputs[0].spans[0][1] // each.heads)
        for what, number in numbers.items():
            if (name := words.get(what)) is not None and hasattr(owner.config, name):
                found.setdefault(name, number)
    try:
        narrow = stream(anatomy).count
    except CookError:
        return [found, {**found, **width}]
    # Some families state the embedding width separately: embeddings as wide as the model remain so.
    former = owner.config.hidden_size
    alike = ("hidden_size", "embedding_size", "word_embed_proj_dim")
    found.update({name: narrow for name in alike if getattr(owner.config, name, None) == former})
    return [found, {**found, **width}]


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}


def _count_alike(built: nn.Module, model: nn.Module, blueprint: Blueprint) -> bool:
    return all(
        surgery.has(built, edit.module)
        and surgery.count(built.get_submodule(edit.module), name)
        == surgery.count(surgery.get(model, edit.module), name)
        for edit in blueprint.edits
        if edit.op == "counts"
        for name in edit.options["values"]
    )
