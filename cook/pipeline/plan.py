"""What a recipe would do, told before any weight is loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.depth import STAYS, compact, missing
from cook.model.edits.plain import settle
from cook.model.hub import load
from cook.model.hub.load_guard import guard_parameter
from cook.model.hub.quantizer import attach_quantizer, blueprint_of
from cook.model.nn import sharing
from cook.model.nn.linear import is_linear, weight_count
from cook.model.probe.bare import bare
from cook.model.probe.example import Unmeasured, examples, first_through, planned_tokens
from cook.model.probe.measure import macs, tally
from cook.passes import PHASES, Effect, Pass
from cook.pipeline import tokenizer_check
from cook.pipeline.folders import depend, output
from cook.pipeline.inputs import (
    Data,
    load_model,
    load_student,
    make_passes,
    planned_teachers,
    read_data,
    stored_dtype,
)
from cook.recipe import Recipe
from cook.say import silent
from cook.teacher.teacher import Given, named


@dataclass
class Plan:
    """Sizes before and after, and a row a pass.

    Attributes:
        before, after: of the source, and of what comes out: `parameters`, `bytes`, `macs` (None where the
            model does not run without data), `sizes` (`at most` or `about` where they are such).
        tokens: of the example that multiply-accumulates are counted for; None for models of images. The run
            counts them for an example of its data.
        rows: `id`, `modules`, `parameters`, `zeros`, `parameters_after`, `bytes_after`, `sizes` (what these
            two are), `window`, `note`.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    rows: list[dict[str, Any]]
    tokens: int | None = None


def plan(recipe: Recipe) -> Plan:
    """Plan every pass on a model without weights, each on what the ones before it leave.

    Raises:
        CookError: a target matches nothing, or passes conflict.
    """
    if recipe.has("output"):
        output.check(recipe)
    data = read_data(recipe, silent) if recipe.data is not None else None
    source = _without_weights(recipe, data)
    if data is not None and recipe.model.tokenizer is not None:
        processor = load.load_processor(recipe.model, data.task.processor)
        tokenizer_check.check(recipe, source.config, processor, data.texts(), silent)
    dtype = stored_dtype(recipe, source)
    tokens = planned_tokens(source, data.task.data.max_length if data else None)
    before = _sizes(source, dtype, tokens)
    model = load_student(recipe, source, data, silent)
    passes = make_passes(recipe)
    teachers = planned_teachers(recipe, source, data)
    rows: dict[str, dict[str, Any]] = {}
    planned: list[tuple[Pass, Effect]] = []
    sizes = ""
    for each in finishing(passes):
        weights = _weights(model)
        planned += plan_passes(model, [each], teachers, planned)
        effect, after = planned[-1][1], _sizes(model, dtype, tokens)
        sizes = "about" if "about" in (sizes, effect.sizes) else sizes or effect.sizes
        rows[each.id] = {
            "id": each.id,
            "modules": len({name.rpartition(".")[0] for name in effect.parameters}),
            "parameters": _count(weights, effect),
            "zeros": effect.zeros,
            "parameters_after": after["parameters"],
            "bytes_after": after["bytes"],
            "sizes": sizes,
            "window": _window(each),
            "note": effect.note,
        }
    reads = tokens if source.main_input_name == "input_ids" else None
    after = {**_sizes(model, dtype, tokens), "sizes": sizes}
    return Plan(before, after, [rows[each.id] for each in passes], reads)


def finishing(passes: Sequence[Pass]) -> list[Pass]:
    """The passes in the order in which they finish: what others leave is what a pass has in the end."""
    return sorted(passes, key=lambda each: PHASES.index(each.phase))


def plan_passes(
    model: nn.Module,
    passes: Sequence[Pass],
    teachers: Sequence[nn.Module] = (),
    earlier: Sequence[tuple[Pass, Effect]] = (),
) -> list[tuple[Pass, Effect]]:
    """Plan each pass on `model` (on the meta device), and make its edits there before the next one.

    Args:
        passes: are planned in the order in which they finish.
        teachers: the models, on the meta device too, that the passes will learn from.
        earlier: what was planned on this model already.

    Raises:
        CookError: placed at the pass that cannot do what it is asked to, or claims what another one does.
    """
    effects: list[tuple[Pass, Effect]] = []
    shared = [*blueprint_of(model).shared, *_shared(earlier)]
    for each in finishing(passes):
        try:
            effect = each.plan(Anatomy(model, [Anatomy(teacher) for teacher in teachers]))
        except CookError as error:
            if error.where is None:
                error.where = each.where
            raise
        _check_claims(each, effect, [*earlier, *effects])
        _check_alike(each, effect, [*earlier, *effects])
        try:
            if shared:
                sharing.check_stay(shared, Anatomy(model).layers, _leaving(Anatomy(model), effect))
            Blueprint(edits=list(effect.edits)).apply(model)
            shared += _shared([(each, effect)])
            sharing.check(model, shared)
            if shared:
                guard_parameter(model)
        except CookError as error:
            error.where = each.where
            raise
        effects.append((each, effect))
    return effects


def plan_in_memory(
    model: PreTrainedModel,
    passes: Sequence[Pass],
    teacher: Given = None,
    source: PreTrainedModel | None = None,
) -> None:
    """Refuse before anything is changed what passes cannot do together with a model that is there already.

    Args:
        model: stays as it is.
        teacher: as `cook.apply` takes it.
        source: what `"self"` means; None means the model.

    Raises:
        CookError: as in `plan_passes`.
    """
    own = model if source is None else source
    several = [own if each.model == "self" else each.model for each in named(teacher)]
    copies = [bare(each) for each in (model, *several) if isinstance(each, PreTrainedModel)]
    known = [each for each in copies if each is not None]
    if len(known) < len(copies):
        return  # nothing to plan on: passes see the model itself when they are attached
    with suppress(Unmeasured):  # as above: its tensors are measured then
        plan_passes(known[0], passes, known[1:])


def _shared(planned: Sequence[tuple[Pass, Effect]]) -> list[tuple[str, str]]:
    return Blueprint(edits=[edit for _, effect in planned for edit in effect.edits]).shared


def _leaving(anatomy: Anatomy, effect: Effect) -> set[str]:
    """The layers that a pass may leave out, for a forward or for good."""
    found = {edit.module for edit in effect.edits if edit.op == "skip"} | effect.skips
    return set(anatomy.live) if not found and "layers" in effect.claims else found


def _check_claims(each: Pass, effect: Effect, planned: Sequence[tuple[Pass, Effect]]) -> None:
    """Refuse what two passes cannot both do, where the second one is planned."""
    for other, its in planned:
        if shared := sorted(effect.claims & its.claims):
            more = f" (and {len(shared) - 1} more)" if len(shared) > 1 else ""
            raise each.error(
                f"{other.id} acts on the {shared[0]}{more} already",
                hint="give one of the two passes an `exclude`, or leave it out"
                if hasattr(each.options, "exclude") or hasattr(other.options, "exclude")
                else "leave out one of the two",
            )
        if message := missing(effect.reads, its.skips) or missing(its.reads, effect.skips):
            raise each.error(message, hint=STAYS)
        for loses, groups in ((its.loses, effect.groups), (effect.loses, its.groups)):
            torn = [place for place in groups if place in loses and loses[place] % groups[place]]
            if torn:
                (name, axis), more = torn[0], f" (and {len(torn) - 1} more)" if len(torn) > 1 else ""
                what = f"{'rows' if axis == 'out' else 'columns'} {loses[torn[0]]} at a time"
                whose = each.id if groups is effect.groups else other.id
                names = list(dict.fromkeys(place[0] for place in torn))
                raise each.error(
                    f"{name}{more} loses {what}, which tears the groups of {groups[torn[0]]} of {whose}",
                    hint=f"exclude them in one of the two: [{', '.join(names[:3])}"
                    f"{', ...' if len(names) > 3 else ''}]",
                )


def _check_alike(each: Pass, effect: Effect, planned: Sequence[tuple[Pass, Effect]]) -> None:
    """Refuse to share what an earlier pass makes of sizes that only the run will know."""
    shared = {name for edit in effect.edits if edit.op == "share" for name in edit.modules}
    for other, its in planned:
        open_sizes = [edit.module for edit in its.edits if edit.op == "lowrank" and its.sizes == "about"]
        for module in open_sizes:
            if any(f"{name}.".startswith(f"{module}.") for name in shared):
                message = f"{other.id} finds the rank of each matrix by itself: layers would not be alike"
                hint = f"give {other.id} `spread: false` or a `rank`, the same for all layers"
                raise each.error(message, hint=hint)


def _without_weights(recipe: Recipe, data: Data | None) -> PreTrainedModel:
    """The recipe's model on the meta device; if another recipe has yet to make it, as that one plans it."""
    below = depend.chain(recipe)[:-1]
    if not below:
        return load_model(recipe, data, silent, meta=True)
    needed = below[-1]
    if depend.stale(needed) is None:
        return load_model(depend.using(recipe, needed), data, silent, meta=True)
    its_data = read_data(needed, silent)
    source = _without_weights(needed, its_data)
    model = load_student(needed, source, its_data, silent)
    its_teachers = planned_teachers(needed, source, its_data)
    planned = plan_passes(copy.deepcopy(model), make_passes(needed), its_teachers)
    made = Blueprint(edits=[edit for _, effect in planned for edit in effect.edits])
    applied = made.without("integer").apply(model)
    attach_quantizer(model, settle(model, compact(model, applied)))
    model.cook_origin.dtype = stored_dtype(needed, source)
    if data is not None:
        data.task.bind(model.config, data.labels)
    return model


def _window(each: Pass) -> list[str] | None:
    """As the recipe writes it; None for a pass that acts when the run is over, and has no window."""
    if not hasattr(each.options, "start"):
        return None
    return [str(getattr(each.options, name, default)) for name, default in (("start", "0%"), ("end", "100%"))]


def _sizes(model: nn.Module, dtype: torch.dtype | None, tokens: int) -> dict[str, Any]:
    count = tally(model, dtype)
    return {"parameters": count.parameters, "bytes": count.bytes, "macs": _macs(model, tokens)}


def _macs(model: nn.Module, tokens: int) -> int | None:
    """Multiply-accumulates of an example of so many tokens; None where the model needs data to run."""
    with suppress(Unmeasured):
        return first_through(examples(model, tokens), lambda example: macs(model, example))
    return None


def _weights(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Each parameter by name, and how many numbers it stands for: edits change modules in place."""
    found: dict[str, tuple[Tensor, int]] = {
        name: (each, each.numel()) for name, each in model.named_parameters(remove_duplicate=False)
    }
    for name, module in model.named_modules():
        if is_linear(module) or isinstance(module, nn.Embedding):
            found[f"{name}.weight"] = module.weight, weight_count(module)
    return found


def _count(weights: Mapping[str, tuple[Tensor, int]], effect: Effect) -> int:
    """How many weights a pass touches; what is shared counts once."""
    named = [weights[name] for name in effect.parameters]
    return sum({id(weight): count for weight, count in named}.values())
