"""The options of `prune.weights`, and which of them mean something together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cook.passes import SCHEDULE_POINT, SELECTION, WINDOW

MOVING = ("movement", "soft-movement")
"""Methods whose masks are soft."""
ONE_SHOT = ("wanda", "sparsegpt")
"""Methods that choose once, from calibration examples."""

OPTIONS: dict[str, Any] = {
    "method": {
        "enum": ["magnitude", "movement", "soft-movement", "wanda", "sparsegpt"],
        "default": "magnitude",
        "description": "what goes first: the smallest weights (magnitude); those that training moves towards"
        " zero (movement; soft-movement, with a penalty in the place of a sparsity); in one shot from"
        " calibration examples, small weights of small inputs (wanda), and with the others corrected"
        " (sparsegpt)",
    },
    "sparsity": {
        "type": ["number", "null"],
        "default": None,
        "minimum": 0,
        "exclusiveMaximum": 1,
        "description": "share of the targets' weights that are zero at the end; needed without a pattern,"
        " but for soft-movement. Of each row with wanda, of each matrix with sparsegpt",
    },
    "pattern": {
        "type": ["string", "null"],
        "default": None,
        "pattern": "^[1-9][0-9]{0,3}:[1-9][0-9]{0,3}$",
        "description": "N:M, as 2:4: of every M weights along a layer's input the N best stay, from"
        " the start of the window on; takes no scope, schedule or every",
    },
    "block": {
        "type": ["integer", "array", "null"],
        "default": None,
        "minimum": 1,
        "items": {"type": "integer", "minimum": 1},
        "minItems": 2,
        "maxItems": 2,
        "description": "[rows, columns] of blocks that stay or go together, by the mean of their scores; a"
        " number for square ones. Rows are outputs, columns inputs",
    },
    "rows": {
        "type": "integer",
        "default": 128,
        "minimum": 1,
        "description": "how many calibration examples wanda and sparsegpt look at",
    },
    "scope": {
        "enum": ["global", "layer"],
        "default": "global",
        "description": "one threshold for all targets together, or one for each",
    },
    "schedule": {
        "enum": ["cubic", "linear", "constant"],
        "default": "cubic",
        "description": "how sparsity, with soft-movement the penalty, grows from the start of the window to"
        " its end",
    },
    "every": {
        **SCHEDULE_POINT,
        "default": None,
        "type": ["string", "integer", "null"],
        "description": "how often the threshold moves; 1 % of the window when left out",
    },
    "threshold": {
        "type": "number",
        "default": 0.1,
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "with soft-movement, weights stay while the sigmoid of their score is above it;"
        " that is 0.5 at first",
    },
    "penalty": {
        "type": "number",
        "default": 100,
        "minimum": 0,
        "description": "with soft-movement, the weight in the loss of the mean sigmoid of all scores",
    },
    "speed": {
        "type": "number",
        "default": 300,
        "exclusiveMinimum": 0,
        "description": "with soft-movement, how many times the learning rate scores learn with",
    },
    **SELECTION,
    **WINDOW,
    "end": {**WINDOW["end"], "default": "70%"},
}

_ONE_SHOT = {"sparsity", "pattern", "rows"}
MEANING: dict[str, set[str]] = {
    "magnitude": {"sparsity", "pattern", "block", "scope", "schedule", "every"},
    "movement": {"sparsity", "block", "scope", "schedule", "every"},
    "soft-movement": {"schedule", "threshold", "penalty", "speed"},
    "wanda": _ONE_SHOT,
    "sparsegpt": _ONE_SHOT,
}
"""The options that mean something with each method, beside those that mean something with all of them."""


class Mistake(NamedTuple):
    """An option, what is wrong with it, and the remedy."""

    option: str
    message: str
    hint: str


def pattern_sizes(pattern: str) -> tuple[int, int]:
    """(2, 4) for `2:4`."""
    keep, group = pattern.split(":")
    return int(keep), int(group)


def block_sizes(block: int | Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a block; a square one for a number."""
    rows, columns = (block, block) if isinstance(block, int) else block
    return rows, columns


def final_sparsity(given: Mapping[str, Any]) -> float | None:
    """The sparsity that was asked for; None with soft-movement, which asks for none."""
    if given["pattern"]:
        keep, group = pattern_sizes(given["pattern"])
        return 1 - keep / group
    return given["sparsity"]


def mistakes(given: Mapping[str, Any]) -> Iterator[Mistake]:
    """What the schema lets through and cannot work together."""
    method, pattern, sparsity = given["method"], given["pattern"], given["sparsity"]
    for option in sorted(set.union(*MEANING.values()) - MEANING[method]):
        if given[option] != OPTIONS[option]["default"]:
            meant = ", ".join(name for name, options in MEANING.items() if option in options)
            hint = f"leave it out; it is for {meant}"
            yield Mistake(option, f"means nothing with method {method}", hint)
    if method == "movement" and given["schedule"] == "constant":
        message = "with method movement nothing has moved yet when a constant schedule chooses"
        yield Mistake("schedule", message, "write cubic or linear")
    if sparsity is None and pattern is None and "sparsity" in MEANING[method]:
        patterned = "pattern" in MEANING[method]
        expected, also = ("a sparsity or a pattern", ", or pattern: 2:4") if patterned else ("a sparsity", "")
        yield Mistake("sparsity", f"missing; expected {expected}", f"write sparsity: 0.5{also}")
    if pattern is not None:
        yield from _beside_a_pattern(given)


def _beside_a_pattern(given: Mapping[str, Any]) -> Iterator[Mistake]:
    pattern, sparsity = given["pattern"], given["sparsity"]
    keep, group = pattern_sizes(pattern)
    if keep >= group:
        message = f"{pattern} keeps every weight; expected N:M with N below M"
        yield Mistake("pattern", message, "2:4 keeps two of four")
    if sparsity is not None and abs(sparsity - (1 - keep / group)) > 1e-6:
        message = f"found {sparsity:g}, but the pattern {pattern} is a sparsity of {1 - keep / group:g}"
        yield Mistake("sparsity", message, "give one of the two")
    for option in ("block", "scope", "schedule", "every"):
        if given[option] != OPTIONS[option]["default"]:
            message = f"means nothing with the pattern {pattern}, which is laid at once at the start"
            yield Mistake(option, message, "leave it out")


def zeros_at_end(given: Mapping[str, Any], shapes: Sequence[tuple[int, int]]) -> int:
    """How many weights of matrices [out, in] will be zero; 0 where nobody knows before."""
    final, size = final_sparsity(given), 1
    if final is None:
        return 0
    if given["block"]:
        rows, columns = block_sizes(given["block"])
        shapes, size = [(out // rows, width // columns) for out, width in shapes], rows * columns
    if given["method"] == "wanda":
        return sum(out * round(final * width) for out, width in shapes)
    counts = [out * width for out, width in shapes]
    apart = given["scope"] == "layer" or given["method"] == "sparsegpt"
    return size * sum(round(final * count) for count in (counts if apart else [sum(counts)]))
