"""Save, verify, report: the finished model becomes a folder that is whole or not there at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from cook.errors import RunError
from cook.model.hub import folder
from cook.model.hub.quiet import quiet
from cook.model.hub.verify import verify
from cook.model.nn.integer import IntLinear
from cook.model.probe import measure
from cook.model.probe.equivalence import outputs
from cook.pipeline.folders.output import LOGS, work_folder
from cook.recipe import Recipe
from cook.report import Reload, Report, card
from cook.say import Say, silent

INTEGERS_MAY_DIFFER = 1e-3
"""Relative to the largest output: integer models may sum in another order after reloading."""


def deliver(
    recipe: Recipe,
    asked: Recipe,
    auto_class: str,
    whole: Callable[[], PreTrainedModel],
    report: Report,
    model: PreTrainedModel,
    processor: Any,
    sample: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    force: bool,
    say: Say = silent,
) -> None:
    """Save the model, load it back as a stranger would, time it, and write everything into the output.

    Args:
        recipe: with the model that was really loaded.
        asked: the same as its author wrote it, for what is kept in the folder.
        auto_class: the class of transformers that loads the model.
        whole: loads the source, in float32, to be timed beside the result.
        report: all but what is found and filled in here: `reload`, `model.latency`.
        sample: one example without its label, to verify and to time with.
        dtype: of the floats that are written.
        force: replace a model folder that is there already.
        say: takes a line for people before each part that may take long.

    Raises:
        RunError: the disk refuses, or the reloaded model gives something else. No output is left then.
    """
    target = Path(recipe.output.path)
    draft = work_folder(target) / "result"
    device = next(model.parameters()).device
    stored = folder.cast(model.cpu(), dtype)
    batch = {name: _as(value.cpu(), stored.dtype) for name, value in sample.items()}
    say("saving")
    folder.save(stored, draft, processor=processor, shard_size=recipe.output.shard_size, force=True)
    say("loading the folder back in a process of its own")
    found = verify(
        draft,
        batch,
        outputs(stored, batch),
        auto_class=auto_class,
        trust_remote_code=_trusted(recipe),
        attention=recipe.model.attention,
    )
    _check(model, found)
    report.reload = Reload(**found)
    report.model.extra["weight_bytes"] = folder.weight_bytes(draft)
    if recipe.eval.latency:
        say("measuring latency")
        report.model.latency = _latency(recipe, auto_class, whole, draft, batch, device)
    base, data = recipe.model.path, recipe.data
    texts = {
        "recipe.yaml": asked.to_yaml(target),
        f"recipe.source{Path(asked.name).suffix or '.yaml'}": asked.text,
        "README.md": card(
            report,
            asked.text,
            asked.overrides,
            name=target.name,
            base_model=base,
            dataset=None if data is None else data.path,
        ),
    }
    for name, text in texts.items():
        folder.write(draft, name, text)
    report.write(draft / "report.json")
    if (logs := draft.with_name(LOGS)).exists():
        logs.rename(draft / LOGS)
    folder.publish(draft, target, force=force)


def _trusted(recipe: Recipe) -> bool:
    """Whether the code that the written model may bring is allowed to run."""
    made_of = recipe.student if recipe.student is not None and recipe.student.path else recipe.model
    return bool(made_of.trust_remote_code)


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _check(model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    integers = any(isinstance(module, IntLinear) for module in model.modules())
    allowed = INTEGERS_MAY_DIFFER if integers else 0.0
    if not found["max_rel_difference"] <= allowed:
        raise RunError(
            f"the saved model, loaded again, differs by {found['max_rel_difference']:.2g} (relative)",
            hint="this is a fault of cook: please report it with the recipe",
        )


def _latency(
    recipe: Recipe,
    auto_class: str,
    whole: Callable[[], PreTrainedModel],
    draft: Path,
    batch: Mapping[str, Tensor],
    device: torch.device,
) -> dict[str, Any]:
    """The source and the result in float32, timed in alternation on the device at hand."""
    auto = getattr(transformers, auto_class)
    options: dict[str, Any] = {"trust_remote_code": _trusted(recipe)}
    if recipe.model.attention is not None:
        options["attn_implementation"] = recipe.model.attention
    with quiet():
        after = auto.from_pretrained(draft, dtype=torch.float32, **options)
    models = {"before": whole(), "after": after}
    moved = {name: _as(value, torch.float32).to(device) for name, value in batch.items()}
    times = measure.latency({name: one.to(device).eval() for name, one in models.items()}, moved)
    paired = measure.paired_ratio(times["before"]["times"], times["after"]["times"])
    return {
        "batch": 1,
        "shape": {name: list(value.shape) for name, value in batch.items()},
        "device": device.type,
        "before_ms": times["before"]["median"],
        "after_ms": times["after"]["median"],
        **paired,
        "spread": (paired["high"] - paired["low"]) / paired["ratio"] / 2,
        "rounds": measure.ROUNDS,
        "same_operations": measure.operations(models["before"]) == measure.operations(models["after"]),
    }
