"""What is read and checked without torch: answers within a second, whatever the machine has to import."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cook

ROOT = Path(cook.__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "pyarrow", "pandas", "sklearn", "PIL")
SECOND = 1.0
"""Of processor time, at best of three: the rest is what else runs on the machine."""
CODE = f"""
import sys
from cook.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)
raise SystemExit(code)
"""


def answer(*arguments: str) -> tuple[int, str, float]:
    """Exit code, what was printed, and the least processor time in seconds of up to three tries.

    Asserts that nothing heavy was imported.
    """
    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stderr.splitlines()[-1] == "[]", "imported: " + done.stderr.splitlines()[-1]
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if best <= SECOND:
            break
    return done.returncode, done.stdout + done.stderr, best


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes a recipe over local files, some of its text replaced."""
    rows = "sentence\tlabel\n" + "good one\t1\nbad one\t0\n" * 5000
    for name in ("train.tsv", "val.tsv"):
        (tmp_path / name).write_text(rows)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    passes = [
        {"prune.weights": {"sparsity": 0.5}},
        {"lowrank.linear": {"method": "svd"}},
        {"share.layers": {"groups": 2}},
        "distill.logits",
        {"prune.heads": {"sparsity": 0.5}},
        "quant.qat",
    ]
    value = {
        "version": 1,
        "model": {"path": "./bert", "task": "text-classification"},
        "teacher": "self",
        "data": {"train": "train.tsv", "validation": "val.tsv", "text": "sentence"},
        "train": {"steps": 10, "learning_rate": 0.0001},
        "passes": passes,
        "output": {"path": "out"},
    }

    def write(*changed: tuple[str, str]) -> str:
        text = json.dumps(value, indent=1)
        for old, new in changed:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "recipe.json").write_text(text)
        return str(tmp_path / "recipe.json")

    return write


TYPOS = {
    "a key": (("learning_rate", "learning_rat"), "did you mean 'learning_rate'"),
    "a pass": (("prune.weights", "prune.weight"), "did you mean 'prune.weights'"),
    "an option": (('"sparsity"', '"sparsty"'), "sparsity"),
    "a column": (('"text": "sentence"', '"text": "sentense"'), "there is no column 'sentense'"),
}


@pytest.mark.parametrize("verb", ["run", "plan", "ablate", "validate"])
@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_answered_without_torch(written: Any, verb: str, typo: str) -> None:
    change, words = TYPOS[typo]
    code, said, seconds = answer(verb, written(change))
    assert code == 2
    assert words in said
    assert seconds <= SECOND


def test_a_valid_recipe_is_answered_without_torch(written: Any) -> None:
    code, said, seconds = answer("validate", written())
    assert code == 0, said
    assert "is valid: 6 passes" in said
    assert seconds <= SECOND


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("quick*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_without_torch(path: Path) -> None:
    code, said, seconds = answer("validate", str(path))
    assert code == 0, said
    assert seconds <= SECOND


@pytest.mark.parametrize(
    "arguments",
    [
        ("schema",),
        ("passes",),
        ("passes", "prune.weights"),
        ("passes", "prune.weight"),
        ("--help",),
        ("run", "--help"),
    ],
)
def test_help_is_answered_without_torch(arguments: tuple[str, ...]) -> None:
    code, _, seconds = answer(*arguments)
    assert code == (2 if "prune.weight" in arguments else 0)
    assert seconds <= SECOND


def test_an_empty_list_of_passes_is_said(written: Any) -> None:
    path = written()
    code, said, _ = answer("validate", path, "--set", "passes=[]", "--set", "teacher=null")
    assert code == 0
    assert "nothing is compressed" in said
