"""Dropping of layers: skipped at first, removed and renumbered when the model is finished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.nn import surgery
from cook.model.nn.skipped import Skipped


def droppable(anatomy: Anatomy) -> list[str]:
    """The names of the layers, if layers of this family can be dropped individually.

    Raises:
        CookError: the family is unknown, or its layers return more than their states to the next.
    """
    config: Any = getattr(anatomy.model, "config", None)
    for layer, stack in anatomy.stacks.items():
        if stack.gives not in ("states", "pair"):
            raise CookError(
                f"the layers of a {anatomy.kind} model give each other {stack.gives}, which would be lost",
                hint="use a smaller student: student.config or student.path",
            )
        if "*" in stack.layers:
            raise CookError(f"{layer} of this {anatomy.kind} model runs several times and cannot be left out")
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise CookError(
            f"this {anatomy.kind} model divides attention by a layer's number, which would change"
        )
    if getattr(config, "conv_kernel_size", 0):
        raise CookError(
            f"this {anatomy.kind} model has a convolution behind its first layer, which would move",
            hint="use a smaller student: student.config or student.path",
        )
    return anatomy.layers


def skips(anatomy: Anatomy, layers: Sequence[str]) -> list[Edit]:
    """The edits that replace each of these layers by a `Skipped`."""
    return [Edit("skip", layer, {"pair": anatomy.stacks[layer].gives == "pair"}) for layer in layers]


def matrices(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """The names of all matrices in these layers."""
    return [
        f"{layer}.{name}"
        for layer in layers
        for name, number in model.get_submodule(layer).named_parameters()
        if number.ndim == 2 and name.endswith(".weight")
    ]


def beyond(numbers: Iterable[int], count: int) -> str | None:
    """Describe the first number that is out of range for `count` layers, from either end; None if none is."""
    for number in numbers:
        if not -count <= number < count:
            return f"there is no layer {number}: the model has {count}, 0 to {count - 1}"
    return None


@contextmanager
def left_out(anatomy: Anatomy, layers: Sequence[str]) -> Iterator[None]:
    """Skip layers of a model in the context; they are always restored afterwards.

    Hooks of a skipped layer still run, and see an output equal to the input.
    """
    model = anatomy.model
    places = {name: surgery.get(model, name) for name in layers}
    try:
        for name, layer in places.items():
            pair = anatomy.stacks[name].gives == "pair"
            surgery.replace(model, name, Skipped(layer, pair=pair, watched=True))
        yield
    finally:
        for name, layer in places.items():
            surgery.replace(model, name, layer)


def unreached(anatomy: Anatomy, layers: Sequence[str]) -> list[nn.Parameter]:
    """The parameters that a forward without these layers may not use.

    Those of the layers; if no layer of a kind is left, all of the model, because modules that feed only
    these layers are not used either: an encoder that only the decoder's layers attend to.
    """
    if not layers:
        return []
    without = {id(anatomy.stacks[name]) for name in layers}
    without -= {id(anatomy.stacks[name]) for name in anatomy.live if name not in layers}
    modules = [anatomy.model] if without else [surgery.get(anatomy.model, name) for name in layers]
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


STAYS = "name the layer's own .output, or let the layer stay: keep in prune.layerdrop"
"""The hint for errors found by `missing`."""


def missing(modules: Iterable[str], layers: Iterable[str]) -> str | None:
    """Describe modules that every forward needs and that lie inside layers that some forwards skip; None if
    there are none."""
    owners = tuple(layers)
    for module in sorted(modules):
        for layer in owners:
            if module.startswith(f"{layer}."):
                return f"{module} gives nothing in forwards that leave {layer} out, and a pass learns from it"
    return None


def shorten(config: Any, kept: Sequence[int], count: int, key: str = "num_hidden_layers") -> None:
    """Update a config from `count` layers to the layers of the given numbers."""
    setattr(config, key, len(kept))
    for name, value in list(vars(config).items()):
        # One entry per layer: layer_types and similar.
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == count:
            setattr(config, name, type(value)(value[number] for number in kept))
    if hasattr(config, "stage_names"):
        # Of a backbone: its outputs are those of layers, or of the stem (0).
        given = [sum(number < stage for number in kept) for stage in config.out_indices]
        config.stage_names = ["stem", *(f"stage{number}" for number in range(1, len(kept) + 1))]
        config.set_output_features_output_indices(out_features=None, out_indices=sorted(set(given)))


def compact(model: nn.Module, blueprint: Blueprint) -> Blueprint:
    """Remove skipped layers, and renumber the others from 0.

    Returns:
        The Blueprint in the new names, without skipped layers: the config states the number of layers.
    """
    skipped = [(name, module) for name, module in model.named_modules() if isinstance(module, Skipped)]
    if not skipped:
        return blueprint
    anatomy = Anatomy(model)
    lists = {name.rpartition(".")[0]: anatomy.stacks[name] for name in anatomy.layers}
    places: dict[str, str] = {}
    for path, stack in lists.items():
        layers: Any = surgery.get(model, path)
        kept = [number for number, layer in enumerate(layers) if not isinstance(layer, Skipped)]
        surgery.replace(model, path, nn.ModuleList(layers[number] for number in kept))
        for new, old in enumerate(kept):
            places[f"{path}.{old}."] = f"{path}.{new}."
            for module in layers[old].modules():
                if surgery.count(module, "layer_idx") is not None:
                    module.layer_idx = new
        if len(kept) < len(layers):
            shorten(model.config, kept, len(layers), stack.config.get("layers", "num_hidden_layers"))

    removed = tuple(f"{name}." for name, _ in skipped)

    def renamed(name: str) -> str:
        for old, new in places.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    # Edits of a layer made before it was skipped are removed with it.
    left = [
        edit
        for edit in blueprint.edits
        if edit.op != "skip" and not any(name.startswith(removed) for name in edit.modules)
    ]
    return Blueprint(edits=[edit.renamed([renamed(name) for name in edit.modules]) for edit in left])
