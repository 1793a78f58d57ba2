"""The layout of report.json as a JSON Schema, and the check that a file follows it.

Keys that are not named here are allowed everywhere: a newer cook, or a person, may add some.
"""

from __future__ import annotations

from typing import Any

from cook.errors import CookError

VERSION = 1

_COUNT = {"type": "integer", "minimum": 0}
_MAYBE_COUNT = {"type": ["integer", "null"], "minimum": 0}
_MAYBE_NUMBER = {"type": ["number", "null"]}
_NUMBERS = {"type": "object", "additionalProperties": _MAYBE_NUMBER}
_COUNTS = {"type": "object", "additionalProperties": _COUNT}
_TEXT = {"type": "string"}


def _record(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


STATE = _record(
    {
        "parameters": _COUNT,
        "zeros": _COUNT,
        "sparsity": {"type": "number", "minimum": 0, "maximum": 1},
        "bytes": _MAYBE_COUNT,
        "macs": _MAYBE_COUNT,
        "metrics": _NUMBERS,
    },
    {"removed": {"type": "integer"}, "when": _TEXT, "step": _COUNT},
)
_TIME = {"type": "number", "exclusiveMinimum": 0, "description": "the median, in milliseconds"}
_SPREAD = {**_MAYBE_NUMBER, "description": "the spread of the ratio over the rounds, as a share: 0.04 is 4 %"}
LATENCY = _record(
    {"before_ms": _TIME, "after_ms": _TIME},
    {
        "batch": _COUNT,
        "ratio": {**_MAYBE_NUMBER, "description": "before / after, the median over the rounds"},
        "low": {**_MAYBE_NUMBER, "description": "of the interval of the ratio (95 %)"},
        "high": _MAYBE_NUMBER,
        "spread": _SPREAD,
        "rounds": _COUNT,
        "same_operations": {"type": "boolean", "description": "the same modules on the same shapes"},
    },
)
MODEL = _record(
    {"name": _TEXT, "before": STATE, "after": STATE},
    {
        "source_bytes": _MAYBE_COUNT,
        "float32_bytes": _MAYBE_COUNT,
        "student": {"type": ["object", "null"]},
        "teachers": {"type": "array", "items": _TEXT},
        "latency": {"anyOf": [LATENCY, {"type": "null"}]},
        "auto_class": {"type": ["string", "null"]},
        "positive_class": {"type": ["string", "null"]},
    },
)
PASS = _record(
    {"id": _TEXT, "name": _TEXT, "before": STATE, "after": STATE},
    {
        "options": {"type": "object"},
        "window": {"type": ["array", "null"], "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "states": {"type": "array", "items": STATE},
        "facts": {"type": "object"},
        "amounts": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
)
TRAIN = _record(
    {},
    {
        "steps": _COUNT,
        "epochs": _MAYBE_NUMBER,
        "seconds": _MAYBE_NUMBER,
        "history": {"type": "array", "items": {"type": "object"}},
        "selected": _TEXT,
        "selected_step": _MAYBE_COUNT,
        "metric": {"type": ["string", "null"]},
    },
)
RELOAD = _record(
    {
        "max_abs_difference": _MAYBE_NUMBER,
        "max_rel_difference": _MAYBE_NUMBER,
        "exact": {"type": "boolean"},
        "plain": {"type": "boolean"},
    }
)
REPORT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_record(
        {"version": {"const": VERSION}, "cook": _TEXT, "created": _TEXT, "model": MODEL},
        {
            "recipe": _record({}, {"name": _TEXT, "digest": _TEXT}),
            "passes": {"type": "array", "items": PASS},
            "train": {"anyOf": [TRAIN, {"type": "null"}]},
            "reload": {"anyOf": [RELOAD, {"type": "null"}]},
            "environment": {"type": "object"},
            "data": _record({}, {"rows": _COUNTS, "truncated": _COUNTS}),
        },
    ),
}


def check(value: Any, where: str) -> None:
    """Raise CookError when `value` is not a report; it names the place inside and what is wrong there."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    version = value.get("version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise CookError(
            f"the report has version {version}; this cook reads version {VERSION}",
            where=where,
            hint="a newer cook wrote it: pip install --upgrade cook-compress",
        )
    problem = best_match(Draft202012Validator(REPORT).iter_errors(value))
    if problem is not None:
        steps = problem.absolute_path
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
        message = problem.message if len(problem.message) <= 200 else f"{problem.message[:200]}..."
        raise CookError(
            f"the report is broken at {place.lstrip('.') or 'its top'}: {message}",
            where=where,
            hint="`cook run` writes report.json into its output folder; was this one edited?",
        )
