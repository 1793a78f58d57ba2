"""The documentation is complete: generated parts, a place for each pass and section, links, examples."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cook.passes import declared
from cook.recipe import load_recipe
from cook.recipe.schema.build import schema

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", flags=re.MULTILINE)
FENCED = re.compile(r"^ *```.*?^ *```$", flags=re.MULTILINE | re.DOTALL)
HEADINGS = {"## Method", "## Options"}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The generator, which is a script."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(prose(page)))
    return {heading.replace(" ", "-") for heading in plain}


def test_the_generated_parts_are_up_to_date(generate: ModuleType) -> None:
    assert not [path.name for path in generate.stale()], "run `make docs`"


def test_a_stale_page_is_found(generate: ModuleType) -> None:
    text = (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert generate.updated(text.replace("| `epochs` |", "| `epoch` |")) == text


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 10 * 1024


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_pass_has_a_page_of_its_own() -> None:
    pages = {page.stem for page in (DOCS / "passes").glob("*.md")} - {"README"}
    assert pages == set(declared())
    for name in pages:
        text = (DOCS / "passes" / f"{name}.md").read_text(encoding="utf-8")
        assert set(text.splitlines()) >= HEADINGS
        assert f"<!-- generated: pass {name} -->" in text
        assert f"<!-- generated: options {name} -->" in text


def test_every_section_of_a_recipe_is_documented() -> None:
    text = (DOCS / "recipe.md").read_text(encoding="utf-8")
    for name in schema()["properties"].keys() - {"version", "passes"}:
        assert f"\n## {name}\n" in text
        assert f"<!-- generated: section {name} -->" in text


@pytest.mark.parametrize("name", sorted(declared()))
def test_the_examples_of_a_pass_are_valid(name: str) -> None:
    text = (DOCS / "passes" / f"{name}.md").read_text(encoding="utf-8")
    entries = [
        entry
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        for entry in yaml.safe_load(block)
    ]
    assert len(entries) >= len(declared()[name].examples)
    for entry in entries:
        assert load_recipe({"version": 1, "passes": [entry]}, partial=True).passes
