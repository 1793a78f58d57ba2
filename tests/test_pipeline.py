"""The verbs and the doors, end to end, on tiny models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from cook.cli import main
from cook.errors import CookError
from cook.model.hub.folder import weight_bytes
from cook.model.nn.integer import IntLinear
from cook.pipeline import ablate, evaluate, plan, run
from cook.pipeline.folders import depend
from cook.pipeline.folders.output import work_folder
from cook.recipe import load_recipe
from cook.report import Report
from tests.helpers import tiny

PASSES: list[Any] = [
    {"distill.logits": {"temperature": 2}},
    {"prune.weights": {"sparsity": 0.3, "include": ["ffn"], "end": "60%"}},
    {"prune.weights": {"sparsity": 0.6, "include": ["attention"], "end": "60%"}},
    {"quant.qat": {"activations": "int4", "start": "50%"}},
]
STATE = {"parameters", "zeros", "sparsity", "bytes", "macs", "metrics", "removed"}


def silent(line: str) -> None:
    """Say nothing."""


def write(path: Path, **sections: Any) -> Path:
    """A recipe over the tables beside it; `sections` replace the ones here."""
    value = {
        "version": 1,
        "model": {"path": "./bert", "task": "text-classification"},
        "data": {"train": "train.tsv", "validation": "val.tsv", "text": "sentence"},
        "train": {"steps": 40, "batch_size": 16, "learning_rate": 1e-2},
        "output": {"path": f"out/{path.stem}"},
        **sections,
    }
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and two tables."""
    root = tmp_path_factory.mktemp("workspace")
    tiny.folder(root / "bert")
    # Weights as large as trained ones have: rounding can be seen in what they give.
    model = tiny.model()
    for parameter in model.parameters():
        parameter.data.mul_(10 if parameter.ndim == 2 else 1)
    model.save_pretrained(root / "bert")
    tiny.table(root / "train.tsv", 128)
    tiny.table(root / "val.tsv", 48, seed=1)
    return root


@pytest.fixture(scope="module")
def small(workspace: Path) -> Path:
    """The output of a run with passes of each kind, two of them of one name."""
    recipe = write(workspace / "small.yaml", teacher="self", passes=PASSES)
    assert main(["run", str(recipe), "--quiet", "--set", "passes[0].temperature=3"]) == 0
    return workspace / "out" / "small"


@pytest.fixture(scope="module")
def report(small: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((small / "report.json").read_text())
    return value


def test_the_output_is_whole(small: Path) -> None:
    names = {path.name for path in small.iterdir()}
    weights = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == weights | {"README.md", "recipe.yaml", "recipe.source.yaml", "report.json"}
    assert not work_folder(small).exists()
    assert small.joinpath("model.safetensors").stat().st_mode == small.joinpath("config.json").stat().st_mode


def test_the_report_says_what_the_issue_asks_for(report: dict[str, Any]) -> None:
    for state in (report["model"]["before"], report["model"]["after"]):
        assert state.keys() >= STATE
    ids = ["distill.logits", "prune.weights", "prune.weights#2", "quant.qat"]
    assert [row["id"] for row in report["passes"]] == ids
    assert [row["name"] for row in report["passes"]] == [id.removesuffix("#2") for id in ids]
    assert [row["window"] for row in report["passes"]] == [[0, 39], [0, 23], [0, 23], [20, 39]]
    for row in report["passes"]:
        assert [state["when"] for state in row["states"]] == ["attached", "start", "end", "finished"]
        assert all(state.keys() >= STATE | {"when", "step"} for state in row["states"])
        assert row["before"] == {k: row["states"][0][k] for k in row["before"]}
        assert row["after"] == {k: row["states"][-1][k] for k in row["after"]}
        assert row["after"]["metrics"] == report["model"]["after"]["metrics"]
    assert report["passes"][0]["options"]["temperature"] == 3
    assert report["passes"][2]["facts"]["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert report["reload"]["max_abs_difference"] <= 1e-3
    assert report["reload"]["plain"] is False
    assert {"python", "torch", "transformers", "cook", "device", "threads", "seed"} <= report[
        "environment"
    ].keys()
    assert report["train"]["steps"] == 40
    terms = next(entry["loss"] for entry in report["train"]["history"] if "loss" in entry)
    assert {"task", "task (unweighted)", "logits", "logits (unweighted)"} <= terms.keys()
    latency = report["model"]["latency"]
    assert 0 < latency["low"] <= latency["ratio"] <= latency["high"]
    assert latency["same_operations"] is False


def test_what_a_pass_did_is_told_where_it_did_it(report: dict[str, Any]) -> None:
    pruned, rounded = report["passes"][1]["states"], report["passes"][3]["states"]
    assert pruned[0]["zeros"] <= pruned[1]["zeros"] < pruned[2]["zeros"] <= pruned[3]["zeros"]
    assert rounded[1]["bytes"] > rounded[2]["bytes"] == rounded[3]["bytes"]
    assert {state["removed"] for state in pruned + rounded} == {0}


def test_the_recipe_in_the_folder_is_the_one_that_ran(
    workspace: Path, small: Path, report: dict[str, Any]
) -> None:
    asked = load_recipe(workspace / "small.yaml", ["passes[0].temperature=3"])
    kept = load_recipe(small / "recipe.yaml")
    assert kept.digest == asked.digest == report["recipe"]["digest"]
    assert asked.difference(kept) == []
    assert (small / "recipe.source.yaml").read_text() == (workspace / "small.yaml").read_text()


def test_the_model_card(small: Path) -> None:
    text = (small / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["metrics"] == ["accuracy", "f1_binary"]
    for words in ("# small\n", "import cook", "AutoModelForSequenceClassification", "| prune.weights#2 |"):
        assert words in text
    assert "changed by `--set passes[0].temperature=3`" in text
    assert "temperature: 2" in text


def test_eval_measures_what_a_user_gets(
    workspace: Path, small: Path, report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(small), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == pytest.approx(report["model"]["after"]["metrics"], rel=1e-6)
    # Floats with the same weights, activations not rounded, would have given something else.
    model = AutoModelForSequenceClassification.from_pretrained(small)
    assert isinstance(model.bert.encoder.layer[0].output.dense, IntLinear)
    model.dequantize().save_pretrained(workspace / "floats")
    tiny.tokenizer().save_pretrained(workspace / "floats")
    floats = evaluate(workspace / "floats", small / "recipe.yaml")
    assert abs(floats["loss"] - found["loss"]) > 1e-4


def test_eval_needs_only_what_it_uses(workspace: Path, small: Path) -> None:
    value = yaml.safe_load((small / "recipe.yaml").read_text())
    value["teacher"]["path"], value["data"]["train"] = "./gone", "./gone.tsv"
    value["model"]["path"] = "./gone"
    (workspace / "moved.yaml").write_text(yaml.safe_dump(value))
    found = evaluate(
        small, workspace / "moved.yaml", [f"data.validation={workspace / 'val.tsv'}", "eval.limit=8"]
    )
    assert found["accuracy"] in {index / 8 for index in range(9)}


def test_a_second_run_is_refused_resumed_or_forced(workspace: Path, small: Path) -> None:
    recipe = load_recipe(workspace / "small.yaml", ["passes[0].temperature=3"])
    with pytest.raises(CookError, match="exists already"):
        run(recipe, say=silent, progress=False)
    said: list[str] = []
    finished = run(recipe, resume=True, say=said.append, progress=False)
    assert finished == Report.read(small)
    assert said == [f"{small} is finished already"]


def test_plan_says_what_the_run_writes(workspace: Path, small: Path, report: dict[str, Any]) -> None:
    planned = plan(load_recipe(workspace / "small.yaml"))
    assert planned.after["bytes"] == report["model"]["after"]["bytes"] == weight_bytes(small)
    assert planned.before["bytes"] == report["model"]["before"]["bytes"] == weight_bytes(workspace / "bert")
    assert planned.after["parameters"] == report["model"]["after"]["parameters"]
    sizes = [row["bytes_after"] for row in planned.rows]
    assert sizes == [planned.before["bytes"]] * 3 + [planned.after["bytes"]]
    assert [row["zeros"] for row in planned.rows[1:3]] == [
        row["facts"]["zeros"] for row in report["passes"][1:3]
    ]
    assert [row["window"] for row in planned.rows][1:] == [["0%", "60%"], ["0%", "60%"], ["50%", "100%"]]


@pytest.mark.parametrize(
    ("item", "touched"),
    [
        ({"lowrank.embedding": {"rank": 4}}, 23 * 16),
        ({"prune.heads": {"sparsity": 0.5, "importance": "magnitude"}}, 2 * 4 * 16 * 16),
        ({"share.layers": {"groups": "all"}}, 2 * (4 * 16 * 16 + 2 * 16 * 32)),
    ],
)
def test_plan_counts_what_a_pass_touches_as_it_finds_it(workspace: Path, item: Any, touched: int) -> None:
    (row,) = plan(load_recipe(write(workspace / "touched.yaml", passes=[item]))).rows
    assert row["parameters"] == touched


@pytest.mark.usefixtures("clean_processes")
def test_a_result_is_compressed_again(workspace: Path, small: Path) -> None:
    """From a folder of cook, into shards of half the width, by a pass that leaves a plain folder."""
    output = {"path": "out/again", "dtype": "bfloat16", "shard_size": "5KB"}
    model = {"path": "./out/small", "task": "text-classification"}
    train = {"steps": 4, "learning_rate": 1e-3}
    recipe = load_recipe(
        write(workspace / "again.yaml", model=model, output=output, train=train, passes=[PASSES[2]])
    )
    planned = plan(recipe)
    made = run(recipe, say=silent, progress=False)
    folder = workspace / "out" / "again"
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert planned.after["bytes"] == made.model.after.bytes == weight_bytes(folder)
    assert made.reload is not None
    assert made.reload.exact
    assert made.reload.plain
    assert made.model.source_bytes == weight_bytes(small)
    assert evaluate(folder, recipe) == pytest.approx(made.model.after.metrics, rel=1e-6)
    assert AutoModelForSequenceClassification.from_pretrained(folder).dtype is torch.bfloat16


@pytest.mark.usefixtures("clean_processes")
def test_a_recipe_builds_the_model_that_it_needs(workspace: Path) -> None:
    sizes = (
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    )
    known = tiny.model().config.to_dict()
    scratch = {"model_type": "bert", "num_hidden_layers": 1, **{name: known[name] for name in sizes}}
    train, evaluation = {"steps": 2}, {"latency": False}
    first = write(
        workspace / "first.yaml",
        model={"config": scratch, "tokenizer": "./bert", "task": "text-classification"},
        train=train,
        eval=evaluation,
        passes=["quant.qat"],
        output={"path": "out/first # 1"},
    )
    model = {"recipe": "first.yaml", "task": "text-classification"}
    second = load_recipe(
        write(workspace / "second.yaml", model=model, train=train, eval=evaluation, passes=[PASSES[1]])
    )
    # A plan needs nothing to be built, and says the same once it is.
    planned = plan(second)
    assert not (workspace / "out" / "first # 1").exists()
    said: list[str] = []
    made = run(second, say=said.append, progress=False)
    assert [line for line in said if line.startswith("building")] == [
        f"building {workspace / 'out' / 'first # 1'} from first.yaml first: it is missing"
    ]
    assert planned == plan(second)
    assert planned.after["bytes"] == made.model.after.bytes
    assert load_recipe(workspace / "out" / "second" / "recipe.yaml").digest == second.digest
    needed = load_recipe(first)
    assert depend.stale(needed) is None
    write(first, **{**yaml.safe_load(first.read_text()), "train": {"steps": 3}})
    assert depend.stale(load_recipe(first)) == "it was not made by this recipe"
    assert depend.stale(second) == f"{needed.output.path} is newer"


@pytest.mark.usefixtures("clean_processes")
def test_what_a_tracker_wrote_is_kept(workspace: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train = {"steps": 2, "track": "tensorboard", "eval_every": 1, "metric": "f1"}
    recipe = write(workspace / "tracked.yaml", train=train, eval={"latency": False}, passes=[PASSES[1]])
    report = run(recipe, say=silent, progress=False)
    assert report.train is not None
    assert report.train["metric"] == "f1_binary"
    logs = workspace / "out" / "tracked" / "logs"
    assert list(logs.iterdir())
    events = EventAccumulator(str(logs)).Reload()
    assert {"validation/accuracy", "validation/f1_binary", "model/sparsity", "loss/task"} <= set(
        events.Tags()["scalars"]
    )
    curve = events.Scalars("model/sparsity")
    assert [event.step for event in curve] == [1, 2]
    assert curve[-1].value == pytest.approx(report.model.after.sparsity)


@pytest.mark.usefixtures("clean_processes")
def test_ablation(workspace: Path) -> None:
    recipe = load_recipe(
        write(
            workspace / "ablated.yaml",
            train={"steps": 2},
            eval={"latency": False},
            passes=[PASSES[1], PASSES[2]],
        )
    )
    rows = ablate(recipe, say=silent, progress=False)
    assert [row["left_out"] for row in rows] == [None, "prune.weights", "prune.weights#2"]
    whole, *others = [row["zeros"] for row in rows]
    assert all(zeros < whole for zeros in others)
    folders = {path.name for path in (workspace / "out" / "ablated-ablation").iterdir()}
    assert folders == {"all", "without-prune.weights", "without-prune.weights#2"}
    said: list[str] = []
    assert ablate(recipe, say=said.append, progress=False) == rows
    assert not any("written" in line for line in said)
    with pytest.raises(CookError, match="no pass to leave out"):
        ablate(load_recipe(workspace / "ablated.yaml", ["passes=[]"]), say=silent)


def test_outputs_beside_the_data_are_none_of_it(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "bert")
    (tmp_path / "data").mkdir()
    tiny.table(tmp_path / "data" / "train.tsv", 16)
    tiny.table(tmp_path / "data" / "validation.tsv", 16, seed=1)
    recipe = load_recipe(
        write(
            tmp_path / "here.yaml",
            data={"path": "./data", "text": "sentence"},
            train={"steps": 1, "batch_size": 8},
            eval={"latency": False},
            output={"path": "data/made"},
            passes=[PASSES[1]],
        )
    )
    for path in tmp_path.rglob("*"):
        os.utime(path, (1e9, 1e9))  # a report tells whole seconds
    run(recipe, say=silent, progress=False)
    (tmp_path / "data" / "made" / "later.txt").write_text("newer than the report")
    assert depend.stale(recipe) is None
    tiny.table(tmp_path / "data" / "train.tsv", 24)
    assert depend.stale(recipe) is not None


@pytest.mark.parametrize("passes", [[], None, "left out"])
def test_an_empty_list_of_passes_is_said(workspace: Path, passes: Any) -> None:
    """Without the key a recipe only trains, which is a use of its own."""
    sections = {} if passes == "left out" else {"passes": passes}
    path = write(workspace / f"empty-{passes}.yaml", train={"steps": 1}, eval={"latency": False}, **sections)
    said: list[str] = []
    run(path, say=said.append, progress=False)
    assert ("passes is empty: nothing is compressed" in said) == (passes != "left out")
