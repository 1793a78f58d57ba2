"""The model card: the README.md of the output folder, in the form that the Hugging Face hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from cook.report import table
from cook.report.draw import clean
from cook.report.report import Report

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""`owner/name`, or a bare `name` such as gpt2: no absolute and no relative path."""


PIPELINE_TAGS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
}
"""The hub's name for what a model does, by the class that loads it."""

LICENCE = ("license", "license_name", "license_link")


def licence_of(folder: str | None) -> dict[str, str]:
    """The licence entries of the card in a model folder; none where it has no card or says nothing."""
    import yaml

    if folder is None:
        return {}
    try:
        text = (Path(folder) / "README.md").read_text(encoding="utf-8")
        found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        front = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the base model's card is a courtesy: a broken one stops nothing
    entries = front if isinstance(front, dict) else {}
    return {key: entries[key] for key in LICENCE if isinstance(entries.get(key), str)}


def card(
    report: Report,
    recipe_text: str,
    overrides: Sequence[str] = (),
    *,
    name: str,
    base_model: str | None = None,
    dataset: str | None = None,
) -> str:
    """The text of a model card.

    Args:
        report: what the tables are drawn from.
        recipe_text: the recipe as written, shown at the end.
        overrides: what was changed in it on the command line.
        name: what the model is called: the heading, and the argument of `from_pretrained`.
        base_model: what was compressed; named in the front matter when it is a hub id. The licence of a
            folder's own card is taken over.
        dataset: what it was trained on; named in the front matter when it is a hub id.
    """
    import yaml

    front: dict[str, object] = {"library_name": "transformers"}
    if base_model is not None and HUB_ID.fullmatch(base_model):
        front["base_model"] = base_model
    if tag := PIPELINE_TAGS.get(report.model.auto_class or ""):
        front["pipeline_tag"] = tag
    front |= licence_of(base_model)
    if dataset is not None and HUB_ID.fullmatch(dataset) and not Path(dataset).exists():
        front["datasets"] = [dataset]
    front["tags"] = ["cook", "compression"]
    if metrics := [metric for metric in report.model.after.metrics if metric != "loss"]:
        front["metrics"] = metrics
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", recipe_text)), default=0))
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {clean(name)}",
        _introduction(report, base_model),
        f"## Use\n\n{_use(report, name)}",
        f"## What changed\n\n{table.markdown(report)}",
        _measured(report),
        f"## Recipe\n\n{fence}yaml\n{recipe_text.rstrip()}\n{fence}",
    ]
    if overrides:
        sections.append("changed by " + ", ".join(f"`--set {clean(override)}`" for override in overrides))
    return "\n\n".join(sections) + "\n"


def _introduction(report: Report, base_model: str | None) -> str:
    """One sentence: what was made smaller, and with what."""
    source = _public(base_model) if base_model else "A model"
    made = "".join(f", {clean(part)}" for part in table.lineage(report.model, _public))
    passes = ", ".join(f"`{clean(row.name)}`" for row in report.passes)
    how = f" compressed with cook ({passes})." if passes else " compressed with cook, without a pass."
    return f"{source}{made},{how}" if made else f"{source}{how}"


def _public(name: str) -> str:
    """A hub id, or the last part of a local path, as code."""
    if not HUB_ID.fullmatch(name):
        name = clean(name).replace("`", "").rstrip("/").rpartition("/")[2]
    return f"`{name}`"


def _measured(report: Report) -> str:
    """Where the figures for size and speed come from."""
    text = "Sizes on disk are those of weights as they are written"
    if report.model.latency:
        text += ", and latencies were timed, before and after side by side in one process"
    text = f"{text}; nothing is estimated from the number of zeros."
    if told := table.row_counts(report):
        text += f" {told[0].upper()}{told[1:]}."
    return text


def _use(report: Report, name: str) -> str:
    plain = report.reload is not None and report.reload.plain
    auto_class = report.model.auto_class or "AutoModel"
    lines = [
        *([] if plain else ["import cook  # teaches transformers to rebuild this model"]),
        f"from transformers import {auto_class}",
        "",
        f"model = {auto_class}.from_pretrained({json.dumps(name, ensure_ascii=False)})",
    ]
    needs = (
        "The folder is an ordinary one: transformers alone loads it."
        if plain
        else "Loading needs cook: run `pip install .` in a clone of its repository. Without `import cook`"
        " transformers stops with a size mismatch."
    )
    code = "\n".join(lines)
    return f"{needs}\n\n```python\n{code}\n```"
