"""What README.md and docs show works: recipes run, Python runs, commands are understood."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import cook
from cook.cli import VERBS, main, parser
from cook.passes import declared
from cook.recipe import load_recipe
from tests.helpers import tiny

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "methods").glob("*.md"))]
pytestmark = pytest.mark.usefixtures("clean_processes")


def blocks(language: str, pages: Sequence[Path] = PAGES) -> list[str]:
    """The fenced blocks of a language, in order."""
    fenced = re.compile(rf"^```{language}\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    return [block for page in pages for block in fenced.findall(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes of all pages, whole and cut short: these train for a moment only."""
    root = tmp_path_factory.mktemp("readme")
    for recipe in blocks("yaml"):
        name = recipe.splitlines()[0].removeprefix("# ")
        assert name.endswith(".yaml")
        assert not (root / f"whole-{name}").exists()
        (root / f"whole-{name}").write_text(recipe, encoding="utf-8")
        if "sklearn:digits" in recipe:
            assert "epochs: 10," in recipe
            (root / name).write_text(recipe.replace("epochs: 10,", "steps: 12,"), encoding="utf-8")
    return root


def commands() -> list[list[str]]:
    """The lines that call cook."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("cook ")]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_commands_are_understood(workspace: Path, command: list[str]) -> None:
    args = parser().parse_args(command)
    if args.verb != "slice":
        folder = ROOT if args.recipe.startswith("recipes/") else workspace
        name = args.recipe if folder != workspace else f"whole-{args.recipe}"
        assert load_recipe(folder / name, args.overrides).passes


def test_the_recipe_can_be_planned(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = sorted(workspace.glob("whole-*.yaml"))
    assert workspace / "whole-smaller.yaml" in recipes
    for recipe in recipes:
        assert main(["validate", str(recipe)]) == 0
    assert main(["validate", str(workspace / "digits.yaml")]) == 0
    assert main(["plan", str(workspace / "digits.yaml")]) == 0
    assert "quant.qat" in capsys.readouterr().out


def test_the_student_is_made_and_taught(workspace: Path, tmp_path: Path) -> None:
    tiny.folder(tmp_path / "model", layers=4)
    for split in ("train", "validation"):
        tiny.table(tmp_path / f"{split}.tsv", 24)
    changes = [
        f"model.path={tmp_path / 'model'}",
        "student.layers=[1, 3]",
        f"data.path={tmp_path}",
        *(f"data.{split}={tmp_path / split}.tsv" for split in ("train", "validation")),
        "train.epochs=null",
        "train.steps=10",
        f"output.path={tmp_path / 'out'}",
    ]
    report = cook.run(load_recipe(workspace / "whole-student.yaml", changes), progress=False)
    told = {name for entry in report.train["history"] for name in entry.get("loss", ())}
    assert {"hidden states", "logits"} <= told


def test_the_python_runs(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    names: dict[str, Any] = {}
    for index, block in enumerate(blocks("python", [README])):
        exec(compile(block, f"README.md, python block {index}", "exec"), names)
    assert names["report"].passes[1].facts["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert names["session"].facts["prune.weights"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    for name in ("digits", "at-once", "my-loop"):
        assert (workspace / "out" / name / "config.json").is_file()

    names |= {"text_model": tiny.model(), "tokenizer": tiny.tokenizer()}
    for page in PAGES[1:]:
        for index, block in enumerate(blocks("python", [page])):
            own = {**names, "model": names["new_model"]()}
            exec(compile(block, f"{page.name}, python block {index}", "exec"), own)
    for name in ("low-rank", "fewer-tokens"):
        assert (workspace / "out" / name / "config.json").is_file()


def test_every_verb_and_pass_is_documented() -> None:
    readme = README.read_text(encoding="utf-8")
    for verb in VERBS:
        assert f"| `cook {verb}" in readme
        assert f"\n## {verb}\n" in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, found in declared().items():
        assert f"(docs/passes/{name}.md)" in readme
        page = (ROOT / "docs" / "passes" / f"{name}.md").read_text(encoding="utf-8")
        for option in found.schema():
            assert f"| `{option}` |" in page
