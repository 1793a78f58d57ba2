"""The packages of cook, their sizes, and who imports whom.

python -m tests.helpers.layout        print the table of docs/decisions/layout.md
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
Edges = Mapping[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The modules of cook by name, each with its file."""
    files = sorted((root / "cook").rglob("*.py"))
    return {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}


def folder(module: str) -> str:
    """The folder of a module: `cook.model.nn`."""
    return module.rpartition(".")[0]


def imports(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of cook that a file imports: at its top, in functions, and for type checking."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cook":
            for each in node.names:
                names = (f"{node.module}.{each.name}", node.module, f"{node.module}.__init__")
                yield from [name for name in names if name in known][:1]


def between(root: Path = ROOT) -> Edges:
    """Which package imports which: folders, and each module directly in `cook` by itself."""
    known = modules(root)

    def package(module: str) -> str:
        return module if folder(module) == "cook" else folder(module)

    found: dict[str, set[str]] = defaultdict(set)
    for name, file in known.items():
        for other in imports(file, known):
            if package(name) != package(other):
                found[package(name)].add(package(other))
    return found


def cycle(edges: Edges) -> list[str]:
    """Packages that import each other in a circle; empty if there is none."""
    done: set[str] = set()

    def visit(package: str, path: list[str]) -> list[str]:
        if package in path:
            return path[path.index(package) :]
        if package in done:
            return []
        for other in sorted(edges.get(package, ())):
            if found := visit(other, [*path, package]):
                return found
        done.add(package)
        return []

    return next((found for package in sorted(edges) if (found := visit(package, []))), [])


def sizes(root: Path = ROOT) -> dict[str, tuple[int, int]]:
    """Files and lines of each folder, without those of the folders in it."""
    found: dict[str, list[int]] = defaultdict(list)
    for name, file in modules(root).items():
        found[folder(name)].append(len(file.read_text(encoding="utf-8").splitlines()))
    return {name: (len(lines), sum(lines)) for name, lines in sorted(found.items())}


def table(root: Path = ROOT) -> str:
    """A row for each folder: files, lines, and the packages that its modules import."""
    edges = between(root)
    rows = []
    for name, (files, lines) in sizes(root).items():
        own = edges.get(name, set()) if name != "cook" else set()
        several = sorted(other.removeprefix("cook.") for other in own)
        rows.append(f"| `{name}` | {files} | {lines:,} | {', '.join(several)} |")
    return "\n".join(["| Folder | Files | Lines | Imports |", "| --- | --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(table())
