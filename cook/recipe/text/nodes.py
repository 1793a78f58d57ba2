"""Recipe text -> node graph, each node with its line and column.

YAML is read by YAML 1.2's core rules (`1e-5` is a number, `no` is a text), which PyYAML's own
resolver is not. JSON has its own reader: PyYAML stumbles over its tabs and surrogate pairs, and
would report a JSON mistake in YAML's words. Both give the same nodes, so that everything after
(duplicate keys, limits, marks) is written once.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import yaml

from cook.errors import CookError

MAX_NODES = 10_000
MAX_DEPTH = 64
TAG = "tag:yaml.org,2002:"

CORE: tuple[tuple[str, str, str], ...] = (
    ("null", r"(?:~|null|Null|NULL|)\Z", "~nN"),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF"),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z", "-+0123456789"),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
        "-+.0123456789",
    ),
)
"""YAML 1.2's core schema: a tag, the plain scalars that have it, and how those can begin."""

_HINTS = {
    "'\\t'": "YAML is indented with spaces: replace the tab",
    "mapping values are not allowed": "indent the keys of one level alike, and quote a text that holds ': '",
    "expected <block end>": "indent the keys and '-' of one level alike",
    "expected a single document": "a recipe is one document: remove the '---'",
    "undefined alias": "a text that begins with '*' needs quotes",
    "while scanning an alias": "a text that begins with '*' needs quotes",
    "'@'": "a text that begins with '@' needs quotes",
    "'`'": "a text that begins with '`' needs quotes",
    "'%'": "a text that begins with '%' needs quotes",
}


def compose(text: str, name: str, kind: str = "yaml") -> yaml.Node | None:
    """The root node of a text, or None when it holds nothing.

    Args:
        kind: `yaml` or `json`.

    Raises:
        CookError: with line and column, when the text is not of that kind, is nested deeper than
            `MAX_DEPTH` or has more than `MAX_NODES` nodes.
    """
    return _json(text, name) if kind == "json" else _yaml(text, name)


class _Composer(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own attribute, filled below)

    def __init__(self, text: str):
        self.nodes = self.depth = 0
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count while composing, so that a huge or deep text stops before it costs time."""
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=too_large(self.nodes), problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern, _first in CORE:
    _firsts = ["", *_first] if _tag == "null" else list(_first)
    _Composer.add_implicit_resolver(TAG + _tag, re.compile(_pattern), _firsts)


def too_large(nodes: int) -> str:
    """What to say of a text beyond one of the two limits."""
    if nodes > MAX_NODES:
        return f"the recipe holds more than {MAX_NODES:,} values (aliases count each time they are used)"
    return f"the recipe is nested more than {MAX_DEPTH} levels deep"


def _yaml(text: str, name: str) -> yaml.Node | None:
    loader: _Composer | None = None
    try:
        loader = _Composer(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise CookError(_sentence(error), where=place, hint=_hint(error)) from None
    except yaml.reader.ReaderError as error:
        line, column = _place(_starts(text), int(error.position))
        message = f"found the character {error.character!r}, which a YAML text cannot hold"
        raise CookError(message, where=f"{name}:{line}:{column}") from None
    except (ValueError, OverflowError) as error:
        # PyYAML lets out what chr() and int() raise at an escape or a directive beyond their range.
        line, column = (loader.line + 1, loader.column + 1) if loader else (1, 1)
        raise CookError(f"not valid YAML: {error}", where=f"{name}:{line}:{column}") from None


def _sentence(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "the text cannot be read"
    if problem.startswith("the recipe "):
        return problem
    context = f" ({error.context}" if error.context and error.problem else ""
    if context and error.context_mark and error.context_mark is not error.problem_mark:
        context += f", which begins on line {error.context_mark.line + 1}"
    return f"not valid YAML: {problem}{context}{')' if context else ''}"


def _hint(error: yaml.MarkedYAMLError) -> str | None:
    said = f"{error.problem} {error.context}"
    return next((hint for part, hint in _HINTS.items() if part in said), None)


_TOKEN = re.compile(r'[ \t\r\n]*("(?:[^"\\]|\\.)*"|[^ \t\r\n"\[\]{}:,]+|[\[\]{}:,])')
_CORE = [(tag, re.compile(pattern)) for tag, pattern, _ in CORE]


def _starts(text: str) -> list[int]:
    return [0, *(found.end() for found in re.finditer("\n", text))]


def _place(starts: list[int], position: int) -> tuple[int, int]:
    line = bisect_right(starts, position)
    return line, position - starts[line - 1] + 1


def _json(text: str, name: str) -> yaml.Node | None:
    if not text.strip(" \t\r\n"):
        return None
    try:  # for the verdict and its words; numbers stay text, so that no length of them can raise
        json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        hint = "JSON has no comments and no trailing commas; a .yaml recipe may have both"
        place = f"{name}:{error.lineno}:{error.colno}"
        raise CookError(f"not valid JSON: {error.msg}", where=place, hint=hint) from None
    except RecursionError:
        raise CookError(too_large(0), where=f"{name}:1:1") from None
    return _JsonTree(text, name).node(0)


class _JsonTree:
    """Nodes from the tokens of a text that is known to be valid JSON."""

    def __init__(self, text: str, name: str):
        self.name, self.starts, self.nodes = name, _starts(text), 0
        self.tokens: Iterator[re.Match[str]] = _TOKEN.finditer(text)

    def mark(self, token: re.Match[str]) -> yaml.Mark:
        line, column = _place(self.starts, token.start(1))
        return yaml.Mark(self.name, token.start(1), line - 1, column - 1, None, 0)

    def node(self, depth: int, token: re.Match[str] | None = None) -> yaml.Node:
        token = token or next(self.tokens)
        mark, word = self.mark(token), token[1]
        self.nodes += 1
        if self.nodes > MAX_NODES or depth >= MAX_DEPTH:
            place = f"{self.name}:{mark.line + 1}:{mark.column + 1}"
            raise CookError(too_large(self.nodes), where=place)
        if word == "[":
            items = [self.node(depth + 1, item) for item in self.until("]")]
            return yaml.SequenceNode(TAG + "seq", items, mark, mark)
        if word == "{":
            pairs = []
            for item in self.until("}"):
                key = self.node(depth + 1, item)
                next(self.tokens)  # the colon
                pairs.append((key, self.node(depth + 1)))
            return yaml.MappingNode(TAG + "map", pairs, mark, mark)
        if word[0] == '"':
            return yaml.ScalarNode(TAG + "str", json.loads(word), mark, mark)
        tag = next((tag for tag, pattern in _CORE if pattern.match(word)), None)
        if tag is None:  # Python's reader takes NaN and Infinity, which JSON does not have
            place = f"{self.name}:{mark.line + 1}:{mark.column + 1}"
            raise CookError(f"found {word}, which is no JSON value", where=place)
        return yaml.ScalarNode(TAG + tag, word, mark, mark)

    def until(self, close: str) -> Iterator[re.Match[str]]:
        """The first tokens of the items up to the closing bracket."""
        for token in self.tokens:
            if token[1] == close:
                return
            if token[1] != ",":
                yield token


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would take for something else; repeats, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in CORE:
    _firsts = ["", *_first] if _tag == "null" else list(_first)
    _Dumper.add_implicit_resolver(TAG + _tag, re.compile(_pattern), _firsts)


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    """Double quotes for the line breaks of Unicode, which a reader would turn into plain ones."""
    style = '"' if any(letter in text for letter in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar(TAG + "str", text, style)


_Dumper.add_representer(str, _represent_text)


def dump(value: Any) -> str:
    """Plain values as YAML, keys in their order, nothing folded."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))
