"""The record of structural edits that rebuilds a reshaped model before its weights are loaded.

It is stored in `config.json`, so its contents are validated like any untrusted input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from cook.errors import CookError
from cook.model.edits.edit import OPS, UPGRADE, Edit, is_name, mapping, shown
from cook.model.nn import surgery

VERSION = 1
MAX_EDITS = 100_000


@dataclass
class Blueprint:
    """All edits of a model, in order.

    Args:
        version: of this format.
        edits: applied in order.
        inner: another quantizer's config; always None for now.
        lock: name of the parameter that is stored with an extra leading axis, so that a plain load
            fails instead of misreading the folder.
    """

    version: int = VERSION
    edits: list[Edit] = field(default_factory=list)
    inner: None = None
    lock: str | None = None

    def append(self, edit: Edit) -> None:
        """Validate `edit` and append it."""
        edit.check()
        self.edits.append(edit)

    @property
    def shared(self) -> list[tuple[str, str]]:
        """Modules that share the parameters of others, as pairs (module, owner)."""
        return [(edit.module, edit.options["of"]) for edit in self.edits if edit.op == "share"]

    def without(self, op: str) -> Blueprint:
        """A new Blueprint, without lock and without the edits of one op."""
        return Blueprint(edits=[edit for edit in self.edits if edit.op != op])

    def to_dict(self) -> dict[str, Any]:
        """The Blueprint as JSON values."""
        edits = [edit.to_dict() for edit in self.edits]
        return {"version": self.version, "edits": edits, "inner": self.inner, "lock": self.lock}

    @classmethod
    def from_dict(cls, value: object) -> Blueprint:
        """Validate and read the result of `to_dict`.

        Raises:
            CookError: the value could not have been written by this version of cook.
        """
        entry = mapping(value, "the blueprint", {"version", "edits", "inner", "lock"}, closed=False)
        version, edits, lock = entry.get("version"), entry.get("edits"), entry.get("lock")
        if type(version) is not int or version != VERSION:
            message = f"its version is {shown(version)}, this cook reads version {VERSION}"
            raise CookError(message, where="blueprint", hint=UPGRADE)
        mapping(value, "the blueprint", {"version", "edits", "inner", "lock"})
        if not isinstance(edits, list) or len(edits) > MAX_EDITS:
            raise CookError(f"edits must be a list of at most {MAX_EDITS:,}", where="blueprint")
        if entry.get("inner") is not None:
            message = "it rests on another quantization, which this cook cannot read"
            raise CookError(message, where="blueprint", hint=UPGRADE)
        if lock is not None and not (is_name(lock) and "." in lock):
            raise CookError(f"{shown(lock)} is no parameter name", where="blueprint")
        return cls(edits=[Edit.from_dict(edit) for edit in edits], lock=lock)

    def apply(self, model: nn.Module) -> Blueprint:
        """Apply every edit to the structure of `model`; values are loaded afterwards.

        Names are those of the saved model. A base model has them without its prefix, and the reverse; modules
        that another class does not have, such as a head, are skipped.

        Args:
            model: on the meta device, or real.

        Returns:
            The same Blueprint in the names of `model`, without skipped edits.

        Raises:
            CookError: a name resolves to nothing, or a module does not fit its edit.
        """
        architectures = getattr(getattr(model, "config", None), "architectures", None)
        return self._resolved(model, architectures or [type(model).__name__], edit=True)

    def renamed(self, part: nn.Module, whole: nn.Module) -> Blueprint:
        """This Blueprint of `whole` in the names of `part`, its base model; both are already edited."""
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
            if parent is None:
                return Blueprint(edits=edits)  # the lock belongs to a part that this class does not have
            if parameter not in dict(surgery.get(model, parent).named_parameters()):
                raise CookError(f"{type(model).__name__} has no parameter {lock!r}", where="blueprint")
            lock = f"{parent}.{parameter}"
        return Blueprint(edits=edits, lock=lock)


def resolve(model: nn.Module, name: str, saved_as: Sequence[str]) -> str | None:
    """The name in `model` of a module of the saved model.

    Args:
        model: the model being loaded.
        name: of the module in the saved model.
        saved_as: class names of the saved model.

    Returns:
        None if `model` is of another class than the saved one and lacks the part that contains the module.

    Raises:
        CookError: the part exists, but the module does not.
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
