"""Structural edits: the available ops, their options, and how each changes a model.

Edits are read from `config.json`, so they are untrusted input: every type, name and size is validated
before a module is changed. Each op is one entry of `OPS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cook.errors import CookError
from cook.model.arch.families import COUNTS
from cook.model.nn import embedding, linear, lowrank, sharing, surgery
from cook.model.nn.integer import WIDTHS, IntLinear
from cook.model.nn.residual import add_residual
from cook.model.nn.skipped import Skipped

MAX_SIZE = 2**20
MAX_NAME = 512
UPGRADE = "upgrade cook: pip install --upgrade cook-compress"
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Field:
    """Requirement on an option of an op: the check, and its description."""

    valid: Callable[[Any], bool]
    words: str


@dataclass(frozen=True)
class Op:
    """A kind of edit: its options, and how it changes the module `name` of a model."""

    fields: Mapping[str, Field]
    apply: Callable[[nn.Module, str, Mapping[str, Any]], None]
    stored: bool = True
    """Whether it may be saved in a folder; other edits are undone before a model is finished."""
    names: tuple[str, ...] = ()
    """The options that name other modules."""


@dataclass(frozen=True)
class Edit:
    """One structural edit.

    Args:
        op: a key of `OPS`.
        module: name of the module in the saved model.
        options: exactly the fields of the op, as JSON values.
    """

    op: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The edit as JSON values."""
        options = {key: dict(v) if isinstance(v, Mapping) else v for key, v in self.options.items()}
        return {"op": self.op, "module": self.module, "options": options}

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that the edit names, the one it changes first."""
        return (self.module, *(self.options[key] for key in OPS[self.op].names))

    def renamed(self, names: Sequence[str]) -> Edit:
        """The same edit with `modules` renamed."""
        module, *others = names
        return Edit(self.op, module, {**self.options, **dict(zip(OPS[self.op].names, others, strict=True))})

    @classmethod
    def from_dict(cls, value: object) -> Edit:
        """Validate and read the result of `to_dict`.

        Raises:
            CookError: the value is not a valid edit.
        """
        entry = mapping(value, "an edit", {"op", "module", "options"})
        edit = cls(entry.get("op"), entry.get("module"), entry.get("options"))  # type: ignore[arg-type]
        edit.check()
        if not OPS[edit.op].stored:
            raise CookError(f"an edit {edit.op!r} cannot stand in a folder", where="blueprint")
        return edit

    def check(self) -> None:
        """Raise CookError unless the op is known and the name and the options are well-formed."""
        if not isinstance(self.op, str) or self.op not in OPS:
            raise CookError(f"there is no edit {shown(self.op)}", where="blueprint", hint=UPGRADE)
        if not is_name(self.module):
            raise CookError(f"{shown(self.module)} is no module name", where="blueprint")
        fields = OPS[self.op].fields
        where = f"blueprint: {self.op} {self.module}"
        options = mapping(self.options, "options", set(fields), where)
        for key, expected in fields.items():
            if key not in options:
                raise CookError(f"{key} is missing", where=where)
            if not expected.valid(options[key]):
                message = f"{key} is {shown(options[key])}, it must be {expected.words}"
                raise CookError(message, where=where)


def _integer(model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    old = surgery.get(model, name)
    size = (options["out"], options["in"])
    if not linear.is_linear(old) or linear.shape(old) != size:
        found = linear.shape(old) if linear.is_linear(old) else type(old).__name__
        raise CookError(f"{name} should be a linear layer {size}, it is {found}", where="blueprint")
    if options["bias"] != (getattr(old, "bias", None) is not None):
        raise CookError(f"{name} and its edit do not agree whether it has a bias", where="blueprint")
    weight: Any = old.weight
    new = IntLinear(
        options["in"],
        options["out"],
        options["bits"],
        options["activation"],
        bias=options["bias"],
        conv1d=linear.is_transposed(old),
        device=weight.device,
        dtype=weight.dtype if weight.is_floating_point() else torch.float32,
    )
    surgery.replace(model, name, new)


def _resize(model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    with surgery.tied(model):
        surgery.resize(surgery.get(model, name), options["out"], options["in"])


def _counts(model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    for key, value in options["values"].items():
        surgery.set_count(surgery.get(model, name), key, value)


def _factorise(model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    embedding.factorise(model, name, options["rank"])


def _skip(model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    surgery.replace(model, name, Skipped(surgery.get(model, name), pair=options["pair"]))


def _share(model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    sharing.share(model, name, options["of"])


def _residual(model: nn.Module, name: str, options: Mapping[str, Any]) -> None:
    add_residual(model, name, options["rank"])


def _is_counts(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and key in COUNTS and _SIZE.valid(size) for key, size in value.items()
    )


def is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME and _NAME.fullmatch(value) is not None


def _is_width(value: object) -> bool:
    return type(value) is int and value in WIDTHS


def _is_activation(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, Mapping) or set(value) != {"bits", "kind"}:
        return False
    return (
        _is_width(value["bits"]) and isinstance(value["kind"], str) and value["kind"] in ("token", "static")
    )


def mapping(
    value: object, what: str, keys: set[str], where: str = "blueprint", *, closed: bool = True
) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CookError(f"{what} must be a mapping, not {shown(value)}", where=where)
    if closed and (unknown := [key for key in value if key not in keys]):
        raise CookError(f"{what} has an unknown key {shown(unknown[0])}", where=where, hint=UPGRADE)
    return value


def shown(value: object) -> str:
    """A short text for any value, for one line of an error."""
    if isinstance(value, (list, tuple, set, Mapping)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, (str, bytes)):
        return repr(value[:40])
    if isinstance(value, int) and abs(value) > 10**18:
        return "a huge number"
    return repr(value)


_SIZE = Field(lambda value: type(value) is int and 1 <= value <= MAX_SIZE, f"from 1 to {MAX_SIZE}")
_WHOLE_OR_SIZE = Field(lambda value: value is None or _SIZE.valid(value), f"null or {_SIZE.words}")
_ROWS = Field(
    lambda value: isinstance(value, list) and 2 <= len(value) <= 8 and all(map(_SIZE.valid, value)),
    f"a list of two to eight sizes, each {_SIZE.words}",
)
_WIDTH = Field(_is_width, "from 2 to 8")
_FLAG = Field(lambda value: isinstance(value, bool), "true or false")
_ACTIVATION = Field(_is_activation, "null or {bits: 2 to 8, kind: token or static}")

OPS: dict[str, Op] = {
    "integer": Op(
        {"bits": _WIDTH, "activation": _ACTIVATION, "in": _SIZE, "out": _SIZE, "bias": _FLAG}, _integer
    ),
    "resize": Op({"in": _SIZE, "out": _SIZE}, _resize),
    "factorise": Op({"rank": _SIZE}, _factorise),
    "lowrank": Op({"rank": _SIZE}, lowrank.factorise),
    "apart": Op({"rows": _ROWS, "width": _WHOLE_OR_SIZE}, lowrank.take_apart),
    "skip": Op({"pair": _FLAG}, _skip, stored=False),
    "share": Op({"of": Field(is_name, "a module name")}, _share, names=("of",)),
    "residual": Op({"rank": _SIZE}, _residual),
    "counts": Op(
        {"values": Field(_is_counts, f"sizes of {', '.join(sorted(COUNTS))}")},
        _counts,
    ),
}
"""Every op, by name."""
