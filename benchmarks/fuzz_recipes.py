"""Mutations of the shipped recipes: every text must give a Recipe or a CookError, and nothing else.

    python -m benchmarks.fuzz_recipes --count 50000 --seed 0

prints the texts that gave something else, and one line of totals. Exits 1 if there was such a text.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cook.errors import CookError
from cook.passes import spec
from cook.recipe import load_recipe, peek

ROOT = Path(__file__).parents[1] / "recipes"

SCALARS = (
    *("null", "~", "", "true", "False", "no", "on", "0", "-1", "1", "3", "1.0", "0.5", "-0.0", "80"),
    *("1e-5", "1-e4", "1e400", "-1e400", ".inf", "-.INF", ".nan", "NaN", "0o17", "017", "0x1F", "1_000"),
    *("9223372036854775807", "9223372036854775808", "-" + "9" * 50, "1" * 5000, "0." + "1" * 400, "12:30:45"),
    *("2026-12-01", "2026-12-01T00:00:00Z", "50%", "150%", "1.5 epochs", "-3 epochs", "nan%", "1e999%"),
    *("[]", "[1, 2]", "[[1]]", "[null]", "[a, 1.5, {}]", "{}", "{a: 1}", "{macs}", "{macs: 0.5}", "{1: 2}"),
    *(
        "{null: 1}",
        "{[1]: 2}",
        "{true: 1}",
        "{{}: {}}",
        "[[[[[[]]]]]]",
        "'",
        '"',
        '"\\ud800"',
        '"\\0"',
        "'a'",
    ),
    *(
        "é",
        "\u2028",
        "\ufeff",
        "\x85",
        "日本語",
        "🍳",
        "a" * 300,
        "../..",
        "/dev/null",
        "a\\b",
        "-",
        "?",
        ": ",
    ),
    *("&x 1", "*x", "&x [*x]", "&x {a: *x}", "<<: *x", "{<<: {a: 1}}", "!!python/object:os.system x"),
    *("!!int a", "!!float x", "!!null 1", "!!bool maybe", "!!binary aGk=", "!!set {a}", "!!timestamp now"),
    *("!!str 1", "!x 1", "!!omap [a: 1]", "|\n  a", ">-\n  b", "# gone", "@a", "`a`", "%a", "self", "*"),
    *("2:4", "0:0", "4:2", "cuda", "int9", "all", "last", "best", "influence", "layers[0].output"),
)
"""What takes the place of a value, as text."""

KEYS = (
    *("version", "model", "student", "teacher", "data", "train", "eval", "output", "passes", "path", "map"),
    *("budget", "sparsity", "start", "end", "layers", "config", "recipe", "labels", "<<", "steps", "x", "0"),
)

MARKS = "{}[]:,-#&*!|>'\"%@` \t\n\r\\0"
"""Letters that mean something in YAML."""

Mutation = Callable[[random.Random, str, str], str]
"""(source of chance, a text, another recipe's text) -> the changed text."""


def _lines(change: Callable[[random.Random, list[str], list[str]], None]) -> Mutation:
    def mutation(chance: random.Random, text: str, other: str) -> str:
        lines = text.split("\n")
        change(chance, lines, other.split("\n"))
        return "\n".join(lines)

    mutation.__name__ = change.__name__
    return mutation


def _at(chance: random.Random, lines: Sequence[str]) -> int:
    return chance.randrange(len(lines))


@_lines
def delete(chance: random.Random, lines: list[str], other: list[str]) -> None:
    """Leave out one to three lines."""
    start = _at(chance, lines)
    del lines[start : start + chance.randint(1, 3)]


@_lines
def duplicate(chance: random.Random, lines: list[str], other: list[str]) -> None:
    """Repeat one to three lines."""
    start = _at(chance, lines)
    lines[start:start] = lines[start : start + chance.randint(1, 3)]


@_lines
def swap(chance: random.Random, lines: list[str], other: list[str]) -> None:
    """Exchange two lines."""
    one, two = _at(chance, lines), _at(chance, lines)
    lines[one], lines[two] = lines[two], lines[one]


@_lines
def indent(chance: random.Random, lines: list[str], other: list[str]) -> None:
    """Move a line to another level."""
    at = _at(chance, lines)
    lines[at] = chance.choice(["", " ", "  ", "    ", "      ", "\t", "  - ", "- "]) + lines[at].lstrip(" -")


@_lines
def replace(chance: random.Random, lines: list[str], other: list[str]) -> None:
    """Give a key another value."""
    at = _at(chance, lines)
    key, colon, _ = lines[at].partition(":")
    value = chance.choice(SCALARS)
    lines[at] = f"{key}: {value}" if colon else f"- {value}"


@_lines
def inside(chance: random.Random, lines: list[str], other: list[str]) -> None:
    """Replace what stands between two marks of a flow collection."""
    at = _at(chance, lines)
    marks = [place for place, letter in enumerate(lines[at]) if letter in ":,[]{} "]
    if len(marks) > 1:
        start = chance.randrange(len(marks) - 1)
        before, after = lines[at][: marks[start] + 1], lines[at][marks[start + 1] :]
        lines[at] = f"{before}{chance.choice(['', ' '])}{chance.choice(SCALARS)}{after}"


@_lines
def rename(chance: random.Random, lines: list[str], other: list[str]) -> None:
    """Give a value another key, or none."""
    at = _at(chance, lines)
    key, colon, rest = lines[at].partition(":")
    if colon:
        room = key[: len(key) - len(key.lstrip(" -"))]
        lines[at] = f"{room}{chance.choice([*KEYS, key.strip(' -')[:-1], ''])}{colon}{rest}"


@_lines
def splice(chance: random.Random, lines: list[str], other: list[str]) -> None:
    """Put a few lines of another recipe in."""
    at, start = _at(chance, lines), _at(chance, other)
    lines[at : at + chance.choice([0, 0, 1, 5])] = other[start : start + chance.randint(1, 8)]


def join(chance: random.Random, text: str, other: str) -> str:
    """The beginning of one text and the end of the other."""
    return text[: chance.randrange(len(text) + 1)] + other[chance.randrange(len(other) + 1) :]


def noise(chance: random.Random, text: str, other: str) -> str:
    """Change a few letters."""
    letters = list(text)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(letters) + 1)
        drawn = chance.choice(
            [*"{}[]:,-#&*!|>'\"%@` \t\n\r\\0", chr(chance.randrange(0x250)), "\0", "\ud800"]
        )
        letters[at : at + chance.choice([0, 1])] = drawn
    return "".join(letters)


MUTATIONS: tuple[Mutation, ...] = (
    *(delete, duplicate, swap, indent, replace, replace, inside, inside, rename, splice, join, noise),
)


def texts(folder: Path = ROOT) -> list[str]:
    """The shipped recipes, in the order of their names."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.yaml"))]


def mutated(chance: random.Random, sources: Sequence[str]) -> str:
    """One of the texts after one to five mutations."""
    text = chance.choice(sources)
    for _ in range(chance.choice([1, 1, 1, 2, 2, 3, 5])):
        text = chance.choice(MUTATIONS)(chance, text, chance.choice(sources))
    return text


def outcome(path: Path, text: str) -> str:
    """What reading a text ends in: `recipe` or `error`.

    Args:
        path: where the text is written to be read.

    Raises:
        Exception: whatever is no CookError, and AssertionError for a recipe that is not the one it writes.
    """
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    partial = len(text) % 2 == 0
    try:
        recipe = load_recipe(path, partial=partial)
        peek.check(recipe)
    except CookError as error:
        assert str(error)  # noqa: PT017 (the words must be there)
        return "error"
    for each in recipe.passes:
        spec(each.name)(each.options, id=each.id, where=each.where).wants()
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path, partial=partial).digest == recipe.digest, "the recipe it writes is another"
    return "recipe"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    sources, chance, counts = texts(), random.Random(args.seed), Counter[str]()
    began, slowest = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.count):
            text, start = mutated(chance, sources), time.perf_counter()
            try:
                counts[outcome(Path(folder) / "recipe.yaml", text)] += 1
            except Exception as error:  # what the fuzz looks for
                counts["other"] += 1
                print(f"--- text {number}: {type(error).__name__}: {error}\n{text}\n---", flush=True)
            slowest = max(slowest, time.perf_counter() - start)
    print(
        f"{args.count} texts, seed {args.seed}: {counts['recipe']} recipes, {counts['error']} errors, "
        f"{counts['other']} other; {time.perf_counter() - began:.0f} s, the slowest {slowest:.2f} s"
    )
    return 1 if counts["other"] else 0


if __name__ == "__main__":
    sys.exit(main())
