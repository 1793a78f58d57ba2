"""The command: what is passed on, what is printed, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import cook
from cook.cli import VERBS, main
from cook.cli.screen import complain
from cook.errors import CookError, Interrupted, RecipeErrors, RunError
from tests.report.example import report

RECIPE = SimpleNamespace(passes=("a", "b", "c"), notes=())
BEFORE = {"parameters": 100, "bytes": 400, "macs": 50}
ROW = {
    "id": "prune.weights",
    "modules": 2,
    "parameters": 90,
    "zeros": 45,
    "parameters_after": 100,
    "bytes_after": 400,
    "window": [0, 9],
    "note": "half of them",
}


def sliced(layers: list[int], accuracy: float) -> SimpleNamespace:
    """A stand-in for what a slice is told by."""
    row = {"layers": layers, "parameters": 100, "bytes": 400, "macs": None, "metrics": {"accuracy": accuracy}}
    return SimpleNamespace(to_dict=lambda: {**row, "path": None})


class Calls(list[tuple[str, Any]]):
    """What the stand-ins were called with; `fails` is raised by each of them when it is set."""

    fails: BaseException | None = None

    def answer(self, name: str, value: Any) -> Callable[..., Any]:
        """A function that notes its arguments and gives `value`."""

        def called(*args: Any, **named: Any) -> Any:
            self.append((name, (args, named)))
            if self.fails is not None:
                raise self.fails
            return value

        return called


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for reading a recipe and for the pipeline."""
    made = Calls()
    pipeline, recipe = ModuleType("cook.pipeline"), ModuleType("cook.recipe")
    rows = [
        {"left_out": None, "metrics": {"accuracy": 0.9}, "bytes": 100, "sparsity": 0.5, "zeros": 50},
        {"left_out": "quant.qat", "metrics": {"accuracy": 0.92}, "bytes": 400, "sparsity": 0.5, "zeros": 50},
    ]
    answers = {
        "run": report(),
        "plan": SimpleNamespace(before=BEFORE, after=BEFORE, rows=[ROW], tokens=128),
        "evaluate": {"accuracy": 0.9014, "loss": 0.25},
        "ablate": rows,
        "slice_folder": [sliced([0, 1, 2], 0.9), sliced([2], 0.8)],
    }
    for name, value in answers.items():
        setattr(pipeline, name, made.answer(name, value))
    recipe.load_recipe = made.answer("load_recipe", RECIPE)  # type: ignore[attr-defined]
    recipe.peek = SimpleNamespace(check=lambda recipe: [])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cook.pipeline", pipeline)
    monkeypatch.setitem(sys.modules, "cook.recipe", recipe)
    return made


def test_run(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "r.yaml", "--set", "train.epochs=1", "--set", "output.path=x", "--resume"]) == 0
    (_, (read, _)), (name, (args, named)) = calls
    assert read == ("r.yaml", ["train.epochs=1", "output.path=x"])
    assert (name, args) == ("run", (RECIPE,))
    assert named.pop("say") is not None
    assert named == {"resume": True, "force": False, "progress": True}
    assert "digits-vit: distill.logits, prune.weights, quant.qat" in capsys.readouterr().out


def test_run_is_quiet_when_asked_and_on_other_ranks(
    calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["run", "r.yaml", "--quiet", "--force"]) == 0
    assert calls[-1][1][1]["progress"] is False
    assert calls[-1][1][1]["force"] is True
    calls[-1][1][1]["say"]("nothing")
    monkeypatch.setenv("RANK", "1")
    assert main(["run", "r.yaml"]) == 0
    assert capsys.readouterr().out == ""


def test_validate(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "r.yaml"]) == 0
    assert capsys.readouterr().out == "r.yaml is valid: 3 passes\n"
    assert [name for name, _ in calls] == ["load_recipe"]


def test_plan(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "r.yaml"]) == 0
    assert "half of them" in capsys.readouterr().out
    assert main(["plan", "r.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "before": BEFORE,
        "after": BEFORE,
        "rows": [ROW],
        "tokens": 128,
    }


def test_eval(calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["eval", str(tmp_path)]) == 2
    assert "no recipe.yaml in the folder" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").touch()
    assert main(["eval", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "accuracy  90.14 %\nloss      0.25\n"
    shown = {"say": complain, "progress": True}
    assert calls == [("evaluate", ((str(tmp_path), tmp_path / "recipe.yaml", []), shown))]
    assert main(["eval", str(tmp_path), "--recipe", "other.yaml", "--set", "eval.limit=5", "--json"]) == 0
    assert calls[1] == ("evaluate", ((str(tmp_path), Path("other.yaml"), ["eval.limit=5"]), shown))
    assert json.loads(capsys.readouterr().out) == {"accuracy": 0.9014, "loss": 0.25}
    assert main(["eval", str(tmp_path / "absent")]) == 2


def test_slice(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slice", "out", "--layers", "1", "--layers", "0,2", "--layers", "2,", "--set", "a=b"]) == 0
    (name, (args, named)) = calls[-1]
    assert (name, args) == ("slice_folder", ("out", [1, (0, 2), (2,)]))
    assert named.pop("say")("a line for people") is None
    rest = {"out": None, "write": True, "force": False, "recipe": None}
    assert named == {"choose": "alternate", "overrides": ["a=b"], **rest}
    printed = capsys.readouterr().out
    assert "a line for people\n" in printed
    assert "80.00 % (-10.00)" in printed
    given = ["--choose", "top", "--out", "there", "--dry", "--force", "--recipe", "r.yaml", "--json"]
    assert main(["slice", "out", "--layers", "2", *given]) == 0
    named = calls[-1][1][1]
    named.pop("say")("a line for people")
    rest = {"out": "there", "write": False, "force": True, "recipe": "r.yaml"}
    assert named == {"choose": "top", "overrides": [], **rest}
    printed = capsys.readouterr()
    assert [row["layers"] for row in json.loads(printed.out)] == [[0, 1, 2], [2]]
    assert printed.err == "a line for people\n"


@pytest.mark.parametrize("words", [[], ["--layers", "0"], ["--layers", "-1"], ["--layers", "a,b"]])
def test_slice_asks_for_layers(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["slice", "out", *words])
    assert caught.value.code == 2
    assert "--layers" in capsys.readouterr().err


def test_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report().write(tmp_path / "report.json")
    assert main(["report", str(tmp_path)]) == 0
    assert "3.61x smaller" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--markdown"]) == 0
    assert "| model | before | after | change |" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report().to_dict()
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.startswith("error: there is no report at ")


def test_ablate(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "r.yaml", "--force"]) == 0
    assert calls[-1][1][1]["force"] is True
    assert "92.00 % (+2.00)" in capsys.readouterr().out


def test_schema(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("cook.recipe.schema.build")
    module.schema = lambda: {"type": "object"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cook.recipe", ModuleType("cook.recipe"))
    monkeypatch.setitem(sys.modules, "cook.recipe.schema.build", module)
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == {"type": "object"}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            CookError("is wrong", where="r.yaml:3:1: train", hint="try 3"),
            2,
            "error: r.yaml:3:1: train: is wrong\n  try 3\n",
        ),
        (RunError("the disk is full", where="out"), 1, "error: out: the disk is full\n"),
        (
            Interrupted("stopped at step 4; --resume goes on"),
            1,
            "error: stopped at step 4; --resume goes on\n",
        ),
        (KeyboardInterrupt(), 1, "error: interrupted\n"),
        (ValueError("odd"), 1, "error: ValueError: odd\n  run again with --debug for the traceback\n"),
        (MemoryError(), 1, "error: MemoryError\n  run again with --debug for the traceback\n"),
        (RecipeErrors([CookError("one")]), 2, "error: one\n"),
        (
            RecipeErrors([CookError("one"), CookError("two")]),
            2,
            "error: 2 mistakes in the recipe\none\ntwo\n",
        ),
    ],
)
def test_errors_are_one_screen(
    calls: Calls, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    calls.fails = error
    assert main(["run", "r.yaml"]) == code
    printed = capsys.readouterr()
    assert printed.err == words
    assert printed.out == ""


@pytest.mark.parametrize("argv", [["--debug", "run", "r.yaml"], ["run", "r.yaml", "--debug"]])
@pytest.mark.parametrize("error", [CookError("is wrong"), ValueError("odd")])
def test_debug_shows_the_traceback(
    calls: Calls, capsys: pytest.CaptureFixture[str], argv: list[str], error: Exception
) -> None:
    calls.fails = error
    assert main(argv) == (2 if isinstance(error, CookError) else 1)
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert "run again" not in printed


def test_a_hundred_mistakes_still_fit_on_one_screen(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.fails = RecipeErrors(
        [CookError(f"mistake {index}", hint="did you mean it?") for index in range(100)]
    )
    assert main(["plan", "r.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 30
    assert lines[-1] == "and 88 more: `cook validate` tells them all"


@pytest.mark.parametrize("argv", [[], ["rnu"], ["run"], ["run", "r.yaml", "--what"]])
def test_bad_arguments_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: cook" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: cook {verb}" in capsys.readouterr().out


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run `command` with `$PYTHON` and `$PYTHONPATH` set for this checkout."""
    root = str(Path(cook.__file__).parents[1])
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": root}
    return subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(("flag", "words"), [("--help", "VERB"), ("--version", f"cook {cook.__version__}")])
def test_help_and_version_are_quick(flag: str, words: str) -> None:
    code = (
        "import sys; from cook.cli import main\n"
        f"try: main([{flag!r}])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'jsonschema'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start = time.perf_counter()
    done = shell(f'"$PYTHON" -c "{code}"')
    spent = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    # Under a second on an idle machine; the tests share theirs.
    assert spent < 3


def test_a_reader_that_leaves_and_a_terminal_without_arrows(tmp_path: Path) -> None:
    report().write(tmp_path / "report.json")
    done = shell(f'"$PYTHON" -m cook report {tmp_path} | true')
    assert done.stderr == ""
    done = shell(f'PYTHONIOENCODING=ascii "$PYTHON" -m cook report {tmp_path}')
    assert done.returncode == 0, done.stderr
    assert "96.94 ? 95.28 %" in done.stdout


def test_a_real_recipe_is_validated_without_its_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "version: 1\n"
        "model: {path: owner/model, task: text-classification}\n"
        "teacher: self\n"
        "data: {path: owner/data, text: sentence}\n"
        "train: {epochs: 1}\n"
        "passes:\n"
        "  - distill.logits\n"
        "  - prune.weights: {sparsity: 0.5}\n"
        "output: {path: out}\n"
    )
    assert main(["validate", str(file)]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == (
        f"{file} is valid: 2 passes\n"
        "  not checked: model.path 'owner/model', data.path 'owner/data', which must be fetched first\n"
    )
    assert main(["validate", str(file), "--set", "passes[1].sparsity=2", "--set", "train.epochs=no"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "sparsity" in printed
    assert "Traceback" not in printed
    assert main(["validate", str(tmp_path / "absent.yaml")]) == 2


def test_the_real_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"


def test_validate_tells_every_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "wrong.yaml"
    keys = [f"wrong{number}" for number in range(20)]
    recipe.write_text("version: 1\n" + "".join(f"{key}: 1\n" for key in keys), encoding="utf-8")
    assert main(["validate", str(recipe)]) == 2
    told = capsys.readouterr().err
    assert all(key in told for key in keys)
    assert main(["plan", str(recipe)]) == 2
    assert "more: `cook validate` tells them all" in capsys.readouterr().err
