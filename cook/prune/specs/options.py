"""The options of `prune.weights`, and which of them mean something together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cook.options import POINT_HELP, Selection, Window, option, schedule_point

MOVING = ("movement", "soft-movement")
"""Methods whose masks are soft."""
ONE_SHOT = ("wanda", "sparsegpt")
"""Methods that choose once, from calibration examples."""


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(Selection, Window):
    """The options of `prune.weights`."""

    method: Literal["magnitude", "movement", "soft-movement", "wanda", "sparsegpt"] = option(
        "magnitude",
        "Which weights are pruned first: the smallest (magnitude); those that training moves towards zero"
        " (movement; soft-movement, with a penalty in place of a sparsity); in one shot from calibration"
        " examples, small weights of small inputs (wanda), also correcting the others (sparsegpt)",
    )
    sparsity: float | None = option(
        None,
        "Share of the targets' weights that is zero at the end: of each row with wanda, of each matrix with"
        " sparsegpt; needed unless there is a pattern or the method is soft-movement",
        minimum=0,
        below=1,
    )
    pattern: str | None = option(
        None,
        "N:M, such as 2:4: the N best of every M weights along the input are kept, from the start of the"
        " window on; excludes scope, schedule and every",
        pattern="^[1-9][0-9]{0,3}:[1-9][0-9]{0,3}$",
    )
    block: int | tuple[int, int] | None = option(
        None,
        "[rows, columns] of blocks that are kept or pruned together, by the mean of their scores; a number"
        " for square blocks. Rows are outputs, columns inputs",
        schema={
            "type": ["integer", "array", "null"],
            "minimum": 1,
            "items": {"type": "integer", "minimum": 1},
            "minItems": 2,
            "maxItems": 2,
        },
    )
    rows: int = option(128, "Calibration examples for wanda and sparsegpt", minimum=1)
    scope: Literal["global", "layer"] = option(
        "global", "One threshold for all targets together, or one for each target"
    )
    schedule: Literal["cubic", "linear", "constant"] = option(
        "cubic",
        "Growth of the sparsity (with soft-movement, of the penalty) from the start of the window to its end",
    )
    every: str | int | None = schedule_point(
        None, "How often the threshold is updated; null: every 1 % of the window"
    )
    threshold: float = option(
        0.1,
        "With soft-movement, weights are kept while the sigmoid of their score (0.5 at first) is above it",
        above=0,
        below=1,
    )
    penalty: float = option(
        100, "With soft-movement, the weight of the mean sigmoid of all scores in the loss", minimum=0
    )
    speed: float = option(
        300, "With soft-movement, the learning rate of the scores, as a multiple of the run's", above=0
    )
    end: str | int = schedule_point("70%", f"When the pass ends: {POINT_HELP}")


DEFAULTS = WeightsOptions()
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


def final_sparsity(options: WeightsOptions) -> float | None:
    """The sparsity that was asked for; None with soft-movement, which asks for none."""
    if options.pattern:
        keep, group = pattern_sizes(options.pattern)
        return 1 - keep / group
    return options.sparsity


def mistakes(options: WeightsOptions) -> Iterator[Mistake]:
    """What the schema lets through and cannot work together."""
    method, pattern, sparsity = options.method, options.pattern, options.sparsity
    for name in sorted(set.union(*MEANING.values()) - MEANING[method]):
        if getattr(options, name) != getattr(DEFAULTS, name):
            meant = ", ".join(other for other, named in MEANING.items() if name in named)
            hint = f"leave it out; it is for {meant}"
            yield Mistake(name, f"means nothing with method {method}", hint)
    if method == "movement" and options.schedule == "constant":
        message = "with method movement nothing has moved yet when a constant schedule chooses"
        yield Mistake("schedule", message, "write cubic or linear")
    if sparsity is None and pattern is None and "sparsity" in MEANING[method]:
        patterned = "pattern" in MEANING[method]
        expected, also = ("a sparsity or a pattern", ", or pattern: 2:4") if patterned else ("a sparsity", "")
        yield Mistake("sparsity", f"missing; expected {expected}", f"write sparsity: 0.5{also}")
    if pattern is not None:
        yield from _beside_a_pattern(options, pattern)


def _beside_a_pattern(options: WeightsOptions, pattern: str) -> Iterator[Mistake]:
    sparsity = options.sparsity
    keep, group = pattern_sizes(pattern)
    if keep >= group:
        message = f"{pattern} keeps every weight; expected N:M with N below M"
        yield Mistake("pattern", message, "2:4 keeps two of four")
    if sparsity is not None and abs(sparsity - (1 - keep / group)) > 1e-6:
        message = f"found {sparsity:g}, but the pattern {pattern} is a sparsity of {1 - keep / group:g}"
        yield Mistake("sparsity", message, "give one of the two")
    for name in ("block", "scope", "schedule", "every"):
        if getattr(options, name) != getattr(DEFAULTS, name):
            message = f"means nothing with the pattern {pattern}, which is laid at once at the start"
            yield Mistake(name, message, "leave it out")


def zeros_at_end(options: WeightsOptions, shapes: Sequence[tuple[int, int]]) -> int:
    """How many weights of matrices [out, in] will be zero; 0 where nobody knows before."""
    final, size = final_sparsity(options), 1
    if final is None:
        return 0
    if options.block:
        rows, columns = block_sizes(options.block)
        shapes, size = [(out // rows, width // columns) for out, width in shapes], rows * columns
    if options.method == "wanda":
        return sum(out * round(final * width) for out, width in shapes)
    counts = [out * width for out, width in shapes]
    apart = options.scope == "layer" or options.method == "sparsegpt"
    return size * sum(round(final * count) for count in (counts if apart else [sum(counts)]))
