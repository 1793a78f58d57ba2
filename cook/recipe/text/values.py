"""Single values of a recipe: what the words of a text mean, and which Python values say the same."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from cook.errors import CookError
from cook.recipe.text.nodes import MAX_DEPTH, too_large
from cook.recipe.text.place import Path, where

MAX_INTEGER = 2**63 - 1


def _text(word: str) -> str:
    if "\0" in word or any("\ud800" <= letter <= "\udfff" for letter in word):
        raise ValueError(f"found {word[:40]!r}; expected a text without NUL and half characters")
    return word


def _null(word: str) -> None:
    if word not in ("", "~", "null", "Null", "NULL"):
        raise ValueError(f"found {word[:40]!r} as a null")


def _bool(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise ValueError(f"found {word[:40]!r}; expected true or false")
    return word.lower() == "true"


def _int(word: str) -> int:
    if len(word) > 40:
        raise ValueError(f"found a number of {len(word)} digits; expected one within 64 bits")
    number = int(word, {"0o": 8, "0x": 16}.get(word[:2], 10))
    if abs(number) > MAX_INTEGER:
        raise ValueError(f"found {word}; expected a number within 64 bits")
    return number


def _float(word: str) -> float:
    number = float(word.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(number):
        raise ValueError(f"found {word[:40]}; expected a finite number")
    return number


SCALARS: dict[str, Any] = {"null": _null, "bool": _bool, "int": _int, "float": _float, "str": _text}
"""The reader of each scalar of YAML's core schema; each raises ValueError in the words of an error."""


def plain(source: Any, name: str, path: Path = ()) -> Any:
    """A copy of Python values in the types that a text gives: tuples as lists, `Path` and int keys as text.

    Raises:
        CookError: for a value that no text can say, or one that contains itself.
    """
    if len(path) > MAX_DEPTH:
        raise CookError(too_large(0), where=name)
    if isinstance(source, Mapping):
        result = {}
        for key, item in source.items():
            word = str(key) if type(key) is int else key  # a layer's number, as YAML may have it
            if not isinstance(word, str):
                raise CookError(f"found {key!r} as a key; expected a text", where=where({}, name, path))
            if word in result:
                message = f"the key {word!r} stands twice: as a text and as a number"
                raise CookError(message, where=where({}, name, path))
            result[_checked(word, name, path)] = plain(item, name, (*path, word))
        return result
    if isinstance(source, (list, tuple)):
        return [plain(item, name, (*path, index)) for index, item in enumerate(source)]
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    return _checked(source, name, path)


def _checked(value: Any, name: str, path: Path) -> Any:
    kinds = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}
    kind = kinds.get(type(value))
    try:
        if kind is None:
            raise ValueError(f"found a {type(value).__name__}; expected a text, number, list or mapping")
        if kind in ("int", "float", "str"):
            SCALARS[kind](value if kind == "str" else repr(value))
    except ValueError as error:
        raise CookError(str(error), where=where({}, name, path)) from None
    return value
