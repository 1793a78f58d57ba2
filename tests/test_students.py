"""Students through the verbs and the doors: what is compared with what, and who teaches."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

import cook
from cook.errors import CookError, Interrupted
from cook.model.hub.folder import weight_bytes
from cook.pipeline import evaluate, plan, run
from cook.pipeline.folders import depend
from cook.recipe import load_recipe
from cook.report import Report
from tests.helpers import tiny
from tests.helpers.reshaped import make as reshaped
from tests.model.hub.test_student import source_of

LEARN: list[Any] = [{"distill.logits": {"temperature": 2}}]
SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
pytestmark = pytest.mark.usefixtures("clean_processes")


def silent(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of four layers and two tables."""
    root = tmp_path_factory.mktemp("workspace")
    source_of("bert").save_pretrained(root / "bert")
    tiny.tokenizer().save_pretrained(root / "bert")
    tiny.table(root / "train.tsv", 64)
    tiny.table(root / "val.tsv", 32, seed=1)
    return root


def write(path: Path, **sections: Any) -> Path:
    value = {
        "version": 1,
        "model": {"path": "./bert", "task": "text-classification"},
        "data": {"train": "train.tsv", "validation": "val.tsv", "text": "sentence"},
        "train": {"steps": 6, "batch_size": 16, "learning_rate": 1e-2, "save_every": 2},
        "eval": {"latency": False},
        "output": {"path": f"out/{path.stem}"},
        **sections,
    }
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def shallow(workspace: Path) -> tuple[Path, Report]:
    """A run whose student is the first layer."""
    passes = [*LEARN, {"prune.weights": {"sparsity": 0.5, "end": "50%", "include": ["layers[0].ffn"]}}]
    sections = {"student": {"layers": [0]}, "teacher": "self", "passes": passes, "eval": {"latency": True}}
    path = write(workspace / "shallow.yaml", **sections)

    def layers(models: dict[str, Any], *_: Any) -> dict[str, Any]:
        """How many layers each timed model has, in the place of its time."""
        depths = {name: float(model.config.num_hidden_layers) for name, model in models.items()}
        return {
            name: {"low": depth, "median": depth, "high": depth, "times": [depth] * 15}
            for name, depth in depths.items()
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cook.pipeline.folders.deliver.measure.latency", layers)
        return path, run(path, say=silent, progress=False)


def test_before_is_the_source_and_after_the_student(workspace: Path, shallow: tuple[Path, Report]) -> None:
    path, report = shallow
    folder = workspace / "out" / "shallow"
    source = tiny.model(layers=4).num_parameters()
    student = AutoModelForSequenceClassification.from_pretrained(folder)
    assert student.config.num_hidden_layers == 1
    before, after = report.model.before, report.model.after
    assert (before.parameters, after.parameters) == (source, student.num_parameters())
    assert (before.removed, after.removed) == (0, source - student.num_parameters())
    assert (before.bytes, after.bytes) == (weight_bytes(workspace / "bert"), weight_bytes(folder))
    assert report.model.source_bytes == before.bytes
    assert before.macs is not None
    assert after.macs is not None
    assert before.macs > 2 * after.macs
    assert before.metrics == pytest.approx(evaluate(workspace / "bert", path), rel=1e-6)
    assert after.metrics == pytest.approx(evaluate(folder, path), rel=1e-6)
    assert before.metrics != pytest.approx(after.metrics, rel=1e-3)
    assert report.reload is not None
    assert report.reload.plain
    assert report.reload.exact
    assert report.model.latency is not None
    assert (report.model.latency["before_ms"], report.model.latency["after_ms"]) == (4.0, 1.0)
    assert (report.model.student, report.model.teachers) == ({"layers": [0]}, ["self"])
    assert "`bert`, layers 0, taught by the model itself, compressed" in (folder / "README.md").read_text()


def test_the_states_of_passes_are_the_students(shallow: tuple[Path, Report]) -> None:
    report = shallow[1]
    for row in report.passes:
        assert {state.parameters for state in row.states} == {report.model.after.parameters}
        assert {state.removed for state in row.states} == {report.model.after.removed}
    first = report.passes[0].states[0]
    assert first.metrics != report.model.before.metrics
    assert report.passes[1].facts["sparsity"] == pytest.approx(0.5, abs=1e-2)


def test_the_plan_says_the_sizes_of_the_run(shallow: tuple[Path, Report]) -> None:
    path, report = shallow
    planned = plan(load_recipe(path))
    for size in ("parameters", "bytes"):
        assert planned.before[size] == getattr(report.model.before, size)
        assert planned.after[size] == getattr(report.model.after, size)
    assert planned.rows[1]["zeros"] == report.passes[1].facts["zeros"]
    assert {row["parameters_after"] for row in planned.rows} == {report.model.after.parameters}
    with pytest.raises(CookError, match="the model has 1 layers, 0 to 0"):
        plan(load_recipe(path, ["passes[1].include=['layers[1]']"]))


@pytest.mark.parametrize("student", [{"layers": [1, 3]}, {"config": SMALL}], ids=["layers", "config"])
def test_an_interrupted_run_ends_as_if_nothing_had_been(workspace: Path, student: dict[str, Any]) -> None:
    sections = {"student": student, "teacher": "self", "passes": LEARN}
    name = next(iter(student))
    whole, broken = (write(workspace / f"{name}-{end}.yaml", **sections) for end in ("whole", "broken"))
    run(whole, say=silent, progress=False)
    count = itertools.count(1)
    handle = register_optimizer_step_post_hook(
        lambda *_: signal.raise_signal(signal.SIGINT) if next(count) == 3 else None
    )
    try:
        with pytest.raises(Interrupted):
            run(broken, say=silent, progress=False)
    finally:
        handle.remove()
    said: list[str] = []
    run(broken, resume=True, say=said.append, progress=False)
    assert "resuming after step 3" in said
    assert ("the student starts from random weights" in said) == (name == "config")
    weights = [workspace / "out" / path.stem / "model.safetensors" for path in (whole, broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    states = [Report.read(path.parent).model.before for path in weights]
    assert states[0] == states[1]


def test_a_student_in_bfloat16_and_a_random_one_agree_with_the_plan(workspace: Path) -> None:
    sections = {"student": {"config": SMALL}, "teacher": "self", "passes": [*LEARN, "quant.qat"]}
    recipe = load_recipe(
        write(workspace / "random.yaml", output={"path": "out/random", "dtype": "bfloat16"}, **sections)
    )
    planned, made = plan(recipe), run(recipe, say=silent, progress=False)
    assert planned.after["bytes"] == made.model.after.bytes == weight_bytes(workspace / "out" / "random")
    assert planned.before["bytes"] == made.model.before.bytes == weight_bytes(workspace / "bert") / 2
    assert made.model.source_bytes == weight_bytes(workspace / "bert")


def test_a_student_by_its_path(workspace: Path) -> None:
    tiny.folder(workspace / "other", layers=1, width=8)
    recipe = load_recipe(
        write(workspace / "path.yaml", student={"path": "./other"}, teacher="self", passes=LEARN)
    )
    made = run(recipe, say=silent, progress=False)
    assert made.model.after.parameters == tiny.model(layers=1, width=8).num_parameters()
    assert made.model.before.parameters == tiny.model(layers=4).num_parameters()
    for path in (*workspace.iterdir(), *(workspace / "bert").iterdir(), *(workspace / "other").iterdir()):
        os.utime(path, (0, 0))
    assert depend.stale(recipe) is None
    (workspace / "other" / "new").touch()
    os.utime(workspace / "other" / "new", (2e9, 2e9))
    assert depend.stale(recipe) == "new is newer"
    with pytest.raises(CookError, match="which the run reads"):
        depend.protect(load_recipe(recipe, [f"output.path={workspace / 'other'}"]))


def test_a_student_reads_the_tokens_of_the_model(workspace: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["more"])
    model = tiny.model(layers=1)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(workspace / "words")
    tokenizer.save_pretrained(workspace / "words")
    path = write(workspace / "words.yaml", student={"path": "./words"}, passes=[])
    with pytest.raises(CookError, match=r"student: .*\(24 tokens\) differs from the model's \(23 tokens\)"):
        run(path, say=silent, progress=False)
    (workspace / "words" / "tokenizer.json").unlink()
    (workspace / "words" / "tokenizer_config.json").unlink()
    with pytest.raises(CookError, match=r"has no tokenizer.* its 24 token numbers .* 23"):
        run(path, say=silent, progress=False)


def test_a_student_that_reads_more_than_the_model_is_told_to_stop(workspace: Path) -> None:
    config = {"config": {"max_position_embeddings": 64}}
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 100
    tokenizer.save_pretrained(workspace / "long")
    model = {"path": "./bert", "tokenizer": "./long", "task": "text-classification"}
    path = write(workspace / "long.yaml", model=model, student=config)
    with pytest.raises(
        CookError, match=r"data.max_length: .*reads 64 tokens.*made from 32\n.*max_length: 32"
    ):
        run(path, say=silent, progress=False)


def test_random_weights_have_nothing_to_teach(workspace: Path) -> None:
    config = {"model_type": "bert", **SMALL, "vocab_size": 23, "max_position_embeddings": 32}
    model = {"config": config, "tokenizer": "./bert", "task": "text-classification"}
    path = write(workspace / "noise.yaml", model=model, student={"layers": [0]}, teacher="self", passes=LEARN)
    with pytest.raises(CookError, match="it has nothing to teach"):
        run(path, say=silent, progress=False)


def test_a_recipe_builds_on_the_student_of_another(workspace: Path) -> None:
    write(workspace / "first.yaml", student={"layers": [0, 2]}, teacher="self", passes=LEARN)
    model = {"recipe": "first.yaml", "task": "text-classification"}
    second = load_recipe(write(workspace / "second.yaml", model=model, student={"layers": [1]}))
    planned = plan(second)
    assert not (workspace / "out" / "first").exists()
    made = run(second, say=silent, progress=False)
    assert plan(second) == planned
    assert planned.before["bytes"] == made.model.before.bytes == weight_bytes(workspace / "out" / "first")
    assert planned.after["bytes"] == made.model.after.bytes == weight_bytes(workspace / "out" / "second")


def test_mistakes_point_into_the_recipe(workspace: Path) -> None:
    path = write(workspace / "wrong.yaml", student={"config": {"num_hidden_layer": 1}})
    with pytest.raises(
        CookError, match=r"wrong.yaml:\d+:\d+: student.config.num_hidden_layer: .*\n.*did you"
    ):
        plan(load_recipe(path))
    with pytest.raises(CookError, match=r"student.layers=\[7\]: there is no layer 7"):
        run(load_recipe(path, ["student.config=null", "student.layers=[7]"]), say=silent, progress=False)
    with pytest.raises(CookError, match="exactly one of config, layers and path"):
        load_recipe(path, ["student.layers=[0]"])


ROWS = [{"sentence": f"the film was {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(32)]


def test_apply_gives_the_student_and_leaves_the_model() -> None:
    model = source_of("bert")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    config = {
        "version": 1,
        "student": {"layers": [1, 3]},
        "teacher": "self",
        "data": {"text": "sentence"},
        "train": {"steps": 4, "batch_size": 8, "learning_rate": 1e-2},
        "passes": LEARN,
    }
    rows = {"train": ROWS, "validation": ROWS[:8]}
    result = cook.apply(model, config, data=rows, tokenizer=tiny.tokenizer())
    assert result.model.config.num_hidden_layers == 2
    assert isinstance(result.model, BertForSequenceClassification)
    report = result.report.model
    assert report.before.parameters == model.num_parameters()
    assert report.after.parameters == result.model.num_parameters()
    assert report.before.metrics.keys() == report.after.metrics.keys() != set()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    again = cook.apply(model, config, data=rows, tokenizer=tiny.tokenizer()).model
    assert all(
        torch.equal(value, again.state_dict()[name]) for name, value in result.model.state_dict().items()
    )


def test_apply_makes_the_same_random_student_of_the_same_seed() -> None:
    made = []
    for seed in (0, 0, 1):
        config = {
            "version": 1,
            "student": {"config": SMALL},
            "data": {"text": "sentence"},
            "train": {"steps": 1, "learning_rate": 1e-9, "seed": seed},
        }
        torch.manual_seed(len(made))
        found = cook.apply(source_of("bert"), config, data={"train": ROWS}, tokenizer=tiny.tokenizer())
        made.append(found.model.state_dict()["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=1e-3)


def test_apply_cuts_layers_without_training(tmp_path: Path) -> None:
    config = {"version": 1, "student": {"layers": [2]}, "passes": ["quant.qat"]}
    result = cook.apply(source_of("llama"), config)
    result.model.save_pretrained(tmp_path)
    assert result.report.model.after.bytes == weight_bytes(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 1
    with pytest.raises(CookError, match=r"student.layers: the model was reshaped"):
        cook.apply(reshaped("bert", "narrow"), {"version": 1, "student": {"layers": [0]}})


def test_the_model_given_to_attach_teaches_its_student() -> None:
    model = source_of("gpt2")
    config = {"version": 1, "student": {"layers": [0, 1]}, "teacher": "self", "passes": LEARN}
    batch = tiny.batch("gpt2")
    with torch.no_grad():
        expected = model(**batch).logits
    with cook.attach(model, config, total_steps=2) as session:
        assert session.model is not model
        assert session.model.config.n_layer == 2
        assert session.teachers[0].model is model
        session.module(batch)
        assert torch.equal(session.teachers[0].outputs.logits, expected)
    half = {**config, "teacher": {"path": "self", "dtype": "bfloat16"}}
    with cook.attach(model, half, total_steps=2) as session:
        session.module(batch)
        assert session.teachers[0].outputs.logits.dtype == torch.bfloat16
        assert session.teachers[0].anatomy.layers[-1] == "transformer.h.3"
    assert model.dtype == torch.float32
