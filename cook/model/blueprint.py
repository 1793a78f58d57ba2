"""The record of structural edits that rebuilds a reshaped model before its weights load.

It travels in `config.json`, so what is read from there is input from strangers: every type, name and
size is checked before a module is touched. An op is one entry of `OPS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cook.errors import CookError
from cook.model import embedding, linear, lowrank, sharing, surgery
from cook.model.families import COUNTS
from cook.model.integer import WIDTHS, IntLinear
from cook.model.residual import add_residual
from cook.model.skipped import Skipped

VERSION = 1
MAX_EDITS = 100_000
MAX_SIZE = 2**20
MAX_NAME = 512
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_UPGRADE = "upgrade cook: pip install --upgrade cook-compress"


@dataclass(frozen=True)
class Field:
    """What an option of an op must be: the check, and the words for it."""

    valid: Callable[[Any], bool]
    words: str


@dataclass(frozen=True)
class Op:
    """One kind of edit: the options it takes, and how it changes the module `name` of a model."""

    fields: Mapping[str, Field]
    apply: Callable[[nn.Module, str, Mapping[str, Any]], None]
    stored: bool = True
    """Whether it may stand in a folder; what may not is undone before a model is finished."""
    names: tuple[str, ...] = ()
    """The fields that name other modules."""


@dataclass(frozen=True)
class Edit:
    """One structural edit.

    Args:
        op: a key of `OPS`.
        module: name of the module in the model that is saved.
        options: exactly the fields of the op, as JSON values.
    """

    op: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        options = {key: dict(v) if isinstance(v, Mapping) else v for key, v in self.options.items()}
        return {"op": self.op, "module": self.module, "options": options}

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that it names, the one that it changes first."""
        return (self.module, *(self.options[key] for key in OPS[self.op].names))

    def renamed(self, names: Sequence[str]) -> Edit:
        """The same with other names in the place of `modules`."""
        module, *others = names
        return Edit(self.op, module, {**self.options, **dict(zip(OPS[self.op].names, others, strict=True))})

    @classmethod
    def from_dict(cls, value: object) -> Edit:
        """Check what `to_dict` gave.

        Raises:
            CookError: when it is anything else.
        """
        entry = _mapping(value, "an edit", {"op", "module", "options"})
        edit = cls(entry.get("op"), entry.get("module"), entry.get("options"))  # type: ignore[arg-type]
        edit.check()
        if not OPS[edit.op].stored:
            raise CookError(f"an edit {edit.op!r} cannot stand in a folder", where="blueprint")
        return edit

    def check(self) -> None:
        """Raise CookError unless the op is known and the name and the options are well-formed."""
        if not isinstance(self.op, str) or self.op not in OPS:
            raise CookError(f"there is no edit {_shown(self.op)}", where="blueprint", hint=_UPGRADE)
        if not _is_name(self.module):
            raise CookError(f"{_shown(self.module)} is no module name", where="blueprint")
        fields = OPS[self.op].fields
        where = f"blueprint: {self.op} {self.module}"
        options = _mapping(self.options, "options", set(fields), where)
        for key, expected in fields.items():
            if key not in options:
                raise CookError(f"{key} is missing", where=where)
            if not expected.valid(options[key]):
                message = f"{key} is {_shown(options[key])}, it must be {expected.words}"
                raise CookError(message, where=where)


@dataclass
class Blueprint:
    """All edits of a model, in order.

    Args:
        version: of this format.
        edits: applied first to last.
        inner: another quantizer's config; always None for now.
        lock: name of the parameter that is stored with an extra leading axis, so that a plain load
            fails instead of misreading the folder.
    """

    version: int = VERSION
    edits: list[Edit] = field(default_factory=list)
    inner: None = None
    lock: str | None = None

    def append(self, edit: Edit) -> None:
        """Check `edit` and add it at the end."""
        edit.check()
        self.edits.append(edit)

    @property
    def shared(self) -> list[tuple[str, str]]:
        """Modules that have the parameters of others: (module, whose) each."""
        return [(edit.module, edit.options["of"]) for edit in self.edits if edit.op == "share"]

    def without(self, op: str) -> Blueprint:
        """A new Blueprint, unlocked, without the edits of one op."""
        return Blueprint(edits=[edit for edit in self.edits if edit.op != op])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        edits = [edit.to_dict() for edit in self.edits]
        return {"version": self.version, "edits": edits, "inner": self.inner, "lock": self.lock}

    @classmethod
    def from_dict(cls, value: object) -> Blueprint:
        """Check and read what `to_dict` gave.

        Raises:
            CookError: for anything that this version of cook would not have written.
        """
        entry = _mapping(value, "the blueprint", {"version", "edits", "inner", "lock"}, closed=False)
        version, edits, lock = entry.get("version"), entry.get("edits"), entry.get("lock")
        if type(version) is not int or version != VERSION:
            message = f"its version is {_shown(version)}, this cook reads version {VERSION}"
            raise CookError(message, where="blueprint", hint=_UPGRADE)
        _mapping(value, "the blueprint", {"version", "edits", "inner", "lock"})
        if not isinstance(edits, list) or len(edits) > MAX_EDITS:
            raise CookError(f"edits must be a list of at most {MAX_EDITS:,}", where="blueprint")
        if entry.get("inner") is not None:
            message = "it rests on another quantization, which this cook cannot read"
            raise CookError(message, where="blueprint", hint=_UPGRADE)
        if lock is not None and not (_is_name(lock) and "." in lock):
            raise CookError(f"{_shown(lock)} is no parameter name", where="blueprint")
        return cls(edits=[Edit.from_dict(edit) for edit in edits], lock=lock)

    def apply(self, model: nn.Module) -> Blueprint:
        """Make every edit on `model`: its structure; values are loaded afterwards.

        Names are those of the model that was saved. A base model has them without its prefix, and the
        other way round; modules that another class does not have, such as a head, are skipped.

        Args:
            model: on the meta device, or real.

        Returns:
            The same Blueprint in the names of `model`, without what was skipped.

        Raises:
            CookError: when a name resolves to nothing, or a module does not fit its edit.
        """
        architectures = getattr(getattr(model, "config", None), "architectures", None)
        return self._resolved(model, architectures or [type(model).__name__], edit=True)

    def renamed(self, part: nn.Module, whole: nn.Module) -> Blueprint:
        """This Blueprint of `whole`, in the names of `part`, its base model; both are edited already."""
        return self._resolved(part, [type(whole).__name__], edit=False)

    def _resolved(self, model: nn.Module, saved_as: Sequence[str], *, edit: bool) -> Blueprint:
        edits = []
        for entry in self.edits:
            names = [resolve(model, name, saved_as) for name in entry.modules]
            if None in names:
                continue
            entry = entry.renamed([name for name in names if name is not None])
            if edit:
                OPS[entry.op].apply(model, entry.module, entry.options)
            edits.append(entry)
        lock = self.lock
        if lock is not None:
            module, _, parameter = lock.rpartition(".")
            parent = resolve(model, module, saved_as)
            if parent is None or parameter not in dict(surgery.get(model, parent).named_parameters()):
                raise CookError(f"{type(model).__name__} has no parameter {lock!r}", where="blueprint")
            lock = f"{parent}.{parameter}"
        return Blueprint(edits=edits, lock=lock)


def resolve(model: nn.Module, name: str, saved_as: Sequence[str]) -> str | None:
    """The name in `model` of a module that was called `name` in the model that was saved.

    Args:
        model: the model that is loaded.
        name: of a module.
        saved_as: names of the classes of the model that was saved.

    Returns:
        None when `model` is of another class than the one saved, and has no such part at all.

    Raises:
        CookError: when the part is there, and the module is not.
    """
    prefix = getattr(model, "base_model_prefix", "")
    short = name.removeprefix(f"{prefix}.")
    for candidate in (name, short, f"{prefix}.{name}"):
        if surgery.has(model, candidate):
            return candidate
    part = short.partition(".")[0]
    present = surgery.has(model, part) or surgery.has(model, f"{prefix}.{part}")
    if type(model).__name__ not in saved_as and not present:
        return None
    surgery.get(model, name)
    return None


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


def _is_name(value: object) -> bool:
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


def _mapping(
    value: object, what: str, keys: set[str], where: str = "blueprint", *, closed: bool = True
) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CookError(f"{what} must be a mapping, not {_shown(value)}", where=where)
    if closed and (unknown := [key for key in value if key not in keys]):
        raise CookError(f"{what} has an unknown key {_shown(unknown[0])}", where=where, hint=_UPGRADE)
    return value


def _shown(value: object) -> str:
    """A short text of anything, for one line of an error."""
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
    "share": Op({"of": Field(_is_name, "a module name")}, _share, names=("of",)),
    "residual": Op({"rank": _SIZE}, _residual),
    "counts": Op(
        {"values": Field(_is_counts, f"sizes of {', '.join(sorted(COUNTS))}")},
        _counts,
    ),
}
"""Every op by its name."""
