"""`cook passes [NAME]`: the passes that there are, and one of them in full, from its schema."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from cook.cli import arguments, screen
from cook.passes import Spec, conflict, declared, spec
from cook.report.draw import grid, wrap

NAME = "passes"
BOUNDS = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))


def add(subparsers: Any) -> None:
    """Add the verb to the command."""
    parser = arguments.verb(subparsers, NAME, "list the passes, or document one")
    parser.add_argument("name", metavar="NAME", nargs="?", help="a pass, such as prune.weights")


def call(args: argparse.Namespace) -> int:
    """Print the list, or the documentation of one pass."""
    screen.say(listing(declared()) if args.name is None else document(spec(args.name)))
    return 0


def listing(passes: Mapping[str, type[Spec]]) -> str:
    """A row a pass: its name, phase and needs, and its summary below."""
    rows = [["pass", "phase", "needs"]]
    rows += [[name, found.phase, ", ".join(needs(found)) or "-"] for name, found in passes.items()]
    notes = {index: found.summary for index, found in enumerate(passes.values(), start=1)}
    return grid(rows, align="<<<", notes=notes) + "\n\n`cook passes NAME` documents one"


def document(found: type[Spec]) -> str:
    """One pass: what it does, when it acts, and its options, the required ones first."""
    lines = [found.name, *wrap(found.summary, indent="  "), ""]
    lines.append(f"  phase     {found.phase}")
    lines.append(f"  needs     {', '.join(needs(found)) or 'nothing but the model'}")
    lines.append(f"  supports  {', '.join(sorted(found.supports)) or '-'}")
    if found.reads is not None:
        lines.append(f"  reads     {found.reads}: other models are refused")
    lines += conflicts(found)
    names = sorted(found.schema(), key=lambda name: name not in found.required)
    lines += ["", "options" if names else "no options"]
    for name in names:
        option = found.schema()[name]
        ending = "required" if name in found.required else f"default {json.dumps(option.get('default'))}"
        lines.append(f"  {name}: {kind(option)}, {ending}")
        lines += wrap(option.get("description", ""), indent="      ")
    return "\n".join(lines)


def conflicts(found: type[Spec]) -> list[str]:
    """What a pass cannot be combined with in a recipe, whichever of the two declares it, and when it can."""
    lines = []
    for name, other in {**declared(), found.name: found}.items():
        above, below = conflict(other, found), conflict(found, other)
        if reason := above or below:
            where = "" if above and below else " above it" if above else " below it"
            unless = f", unless {reason.unless}" if reason.unless else ""
            lines += [f"  {name}{where}", *wrap(f"{reason.reason}{unless}", indent="      ")]
    return ["", "cannot be combined with", *lines] if lines else []


def needs(found: type[Spec]) -> list[str]:
    """What a pass needs, and in brackets what some of its options ask for besides."""
    from cook.recipe.schema.shape import fill

    properties = {"properties": found.schema()}
    asked = {need for each in found.examples for need in found(fill(properties, each)).wants()}
    return [*sorted(found.needs), *(f"({need})" for need in sorted(asked - found.needs))]


def kind(option: Mapping[str, Any]) -> str:
    """The type and range of an option in words: "number >= 0 < 1", "cubic | linear", "list of string",
    "mapping to integer"."""
    if option.get("x-schedule-point"):
        return "schedule point"
    if "enum" in option:
        return " | ".join("null" if value is None else str(value) for value in option["enum"])
    if "const" in option:
        return str(option["const"])
    for word in ("anyOf", "oneOf"):
        if word in option:
            return " or ".join(dict.fromkeys(kind(part) for part in option[word]))
    types = option.get("type", "any value")
    words = [types] if isinstance(types, str) else list(types)
    if "items" in option:
        words = [f"list of {kind(option['items'])}" if word == "array" else word for word in words]
    if isinstance(values := option.get("additionalProperties"), Mapping):
        words = [f"mapping to {kind(values)}" if word == "object" else word for word in words]
    bounds = [f"{sign} {option[word]}" for word, sign in BOUNDS if word in option]
    return " ".join([" or ".join(words), *bounds])
