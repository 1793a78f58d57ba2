"""Mappings that cannot be changed: how a Recipe holds its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from cook.options import plain


class Section(Mapping[str, Any]):
    """A mapping that cannot be changed, its keys readable as attributes: `recipe.train.epochs`."""

    __slots__ = ("_items",)
    _items: dict[str, Any]

    def __init__(self, items: Mapping[str, Any]):
        object.__setattr__(self, "_items", {key: freeze(item) for key, item in items.items()})

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getattr__(self, name: str) -> Any:
        if name in Section.__slots__ or name not in self._items:
            raise AttributeError(f"the section has no {name!r}, only {', '.join(self._items)}")
        return self._items[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a recipe cannot be changed; load it with overrides instead")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a recipe cannot be changed; load it with overrides instead")

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Section, (thaw(self),)

    def __deepcopy__(self, memo: Any) -> Section:
        return self

    def __repr__(self) -> str:
        return repr(thaw(self))


def freeze(value: Any) -> Any:
    """Dicts as `Section`, lists as tuples, all the way down."""
    if isinstance(value, Mapping):
        return value if isinstance(value, Section) else Section(value)
    return tuple(freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def thaw(value: Any) -> Any:
    """The opposite of `freeze`: plain dicts and lists, for JSON and YAML; of typed sections as well."""
    if is_dataclass(value):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, (list, tuple)) else value
