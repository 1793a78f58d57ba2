"""Models of fewer layers, cut out of a folder: what they are equal to, and what goes with them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

import cook
from cook.cli import main
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.hub import folder as folders
from cook.model.hub.verify import verify
from cook.model.probe.equivalence import outputs
from cook.pipeline import evaluate, slice_folder
from cook.prune.layers import chosen
from cook.report import Report
from tests.helpers import families, tiny

BATCH = {name: value for name, value in tiny.batch(size=6).items() if name != "labels"}
pytestmark = pytest.mark.usefixtures("clean_processes")


def silent(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of six layers that was trained with layers left out, in `out`."""
    root = tmp_path_factory.mktemp("slices")
    tiny.folder(root / "model", layers=6)
    tiny.table(root / "train.tsv", 64)
    tiny.table(root / "validation.tsv", 24, seed=1)
    recipe = {
        "version": 1,
        "model": {"path": str(root / "model"), "task": "text-classification"},
        "data": {"train": str(root / "train.tsv"), "validation": str(root / "validation.tsv")},
        "train": {"steps": 40, "batch_size": 16, "learning_rate": 5e-3},
        "eval": {"latency": False},
        "passes": [{"prune.layerdrop": {"rate": 0.5}}],
        "output": {"path": str(root / "out")},
    }
    cook.run(recipe, say=silent, progress=False)
    return root


def loaded(path: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(path).eval()


def pruned(path: Path, keep: list[int]) -> PreTrainedModel:
    """The model in a folder without layers, as `prune.layers` leaves it."""
    passes = [{"prune.layers": {"keep": keep}}]
    return cook.apply(loaded(path), {"version": 1, "passes": passes}).model


@pytest.mark.parametrize(
    ("depth", "choose", "keep"),
    [
        (3, "alternate", [1, 3, 5]),
        (2, "top", [0, 1]),
        (2, "bottom", [4, 5]),
        ((0, 2, -1), "alternate", [0, 2, 5]),
    ],
)
def test_a_slice_is_the_model_that_prune_layers_leaves(workspace, tmp_path, depth, choose, keep):
    target = tmp_path / "slice"
    whole, part = slice_folder(workspace / "out", [depth], choose=choose, out=target, say=silent)
    assert part.layers == keep
    assert part.path == target
    model = pruned(workspace / "out", keep)
    found = verify(target, BATCH, outputs(model, BATCH), auto_class="AutoModelForSequenceClassification")
    assert found["plain"]
    assert found["exact"]
    config = json.loads((target / "config.json").read_text())
    assert config["num_hidden_layers"] == len(keep)
    assert (config["id2label"], config["label2id"]) == (
        {"0": "negative", "1": "positive"},
        tiny.LABELS["label2id"],
    )
    assert AutoTokenizer.from_pretrained(target).get_vocab() == tiny.tokenizer().get_vocab()
    # What is told is what is there, of both.
    for state, path in ((whole.state, workspace / "out"), (part.state, target)):
        assert state.metrics == evaluate(path, path / "recipe.yaml")
        assert state.bytes == folders.weight_bytes(path)
        assert state.parameters == sum(number.numel() for number in loaded(path).parameters())
    assert part.state.removed == whole.state.parameters - part.state.parameters
    layer = (whole.state.macs - part.state.macs) / (6 - len(keep))
    assert layer == int(layer) > 0


def test_every_other_layer_of_layerdrop():
    """A depth d goes if d is 0 modulo 1/p (Fan et al. 2020, 3.3), for shares p that have a whole inverse."""
    for layers, p in ((6, 2), (12, 2), (12, 3), (12, 4), (24, 4)):
        kept = chosen(layers, layers - layers // p, "alternate")
        gone = [number for number in range(layers) if number not in kept]
        steps = {later - earlier for earlier, later in itertools.pairwise(gone)}
        assert steps == {p}, (layers, p)
        assert len(gone) == len([depth for depth in range(layers) if depth % p == 0])
    assert chosen(12, 6, "alternate") == [depth for depth in range(12) if depth % 2 != 0]


def test_the_report_says_what_it_is_and_a_slice_is_sliced_again(workspace, tmp_path):
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    assert main(["slice", str(tmp_path / "out"), "--layers", "4"]) == 0
    target = tmp_path / "out-4-layers"
    report = Report.read(target)
    (row,) = report.passes
    assert row.name == "prune.layers"
    assert row.facts == {"kept": chosen(6, 4, "alternate"), "of": 6, "note": "2 of 6 layers removed"}
    assert row.amounts["removed"] == report.model.after.removed > 0
    assert report.model.name == str(tmp_path / "out")
    assert report.reload is not None
    assert report.reload.exact
    assert report.model.before.metrics == evaluate(tmp_path / "out", tmp_path / "out" / "recipe.yaml")
    assert str(tmp_path) not in (target / "recipe.yaml").read_text() + (target / "README.md").read_text()
    assert not list(tmp_path.glob(".*"))
    _, again = slice_folder(target, [(0, 3)], say=silent)
    assert again.path == tmp_path / "out-4-layers-layers-0-3"
    model = pruned(tmp_path / "out", [row.facts["kept"][number] for number in (0, 3)])
    with torch.no_grad():
        assert torch.equal(loaded(again.path)(**BATCH).logits, model(**BATCH).logits)


def test_depths_are_compared_without_writing(workspace, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    before = sorted(workspace.rglob("*"))
    words = ["--layers", "2", "--layers", "4", "--layers", "1,4", "--dry"]
    assert main(["slice", str(workspace / "out"), *words]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert [line.split()[0] for line in lines if "%" in line] == ["6", "2", "4", "2"]
    assert main(["slice", str(workspace / "out"), *words, "--json", "--set", "eval.limit=8"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["layers"] for row in rows] == [list(range(6)), [2, 5], [0, 2, 3, 5], [1, 4]]
    assert all(row["path"] is None and "accuracy" in row["metrics"] for row in rows)
    assert sorted(workspace.rglob("*")) == before


def test_a_model_of_another_shape_needs_cook_as_before(workspace, tmp_path):
    heads = {"sparsity": 0.3, "importance": "magnitude", "scope": "global", "limit": 0.5}
    model = cook.apply(loaded(workspace / "out"), {"version": 1, "passes": [{"prune.heads": heads}]}).model
    folders.save(model, tmp_path / "heads", processor=tiny.tokenizer())
    recipe = workspace / "out" / "recipe.yaml"
    _, part = slice_folder(tmp_path / "heads", [[1, 2, 3]], recipe=recipe, say=silent)
    assert part.path is not None
    assert folders.read_blueprint(part.path) is not None
    expected = outputs(pruned(tmp_path / "heads", [1, 2, 3]), BATCH)
    found = verify(part.path, BATCH, expected, auto_class="AutoModelForSequenceClassification")
    assert found["exact"]


@pytest.mark.parametrize("kind", ["masked", "causal", "vit", "bert"])
def test_any_model_folder_keeps_its_head_without_data(kind, tmp_path):
    place = tmp_path / "model"
    words = {"vocab_size": 23, "pad_token_id": 0}
    if kind == "masked":
        sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32}
        model: Any = BertForMaskedLM(BertConfig(num_hidden_layers=3, **sizes, **words))
    elif kind == "causal":
        model = GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=3, n_head=4, eos_token_id=1, bos_token_id=1, **words)
        )
    elif kind == "bert":
        model = tiny.model(layers=3).bert
    else:
        model = tiny.model("vit", layers=3)
    model.save_pretrained(place)
    said: list[str] = []
    whole, part = slice_folder(place, [2], say=said.append)
    assert "there is no recipe.yaml" in said[0]
    assert (whole.state.metrics, part.state.metrics, part.state.macs) == ({}, {}, None)
    again, info = type(model).from_pretrained(part.path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert len(Anatomy(again).layers) == 2
    assert Report.read(part.path).model.after.parameters == sum(
        number.numel() for number in again.parameters()
    )


def test_data_that_are_gone_are_said_and_a_named_recipe_must_work(workspace, tmp_path, capsys):
    shutil.copytree(workspace / "out", tmp_path / "out")
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "../validation.tsv" in recipe
    assert main(["slice", str(tmp_path / "out"), "--layers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy is not measured: its recipe names no data that are of use here" in printed
    assert "validation.tsv" in printed
    assert "accuracy is not" in printed
    assert len(loaded(tmp_path / "out-2-layers").bert.encoder.layer) == 2
    gone = str(tmp_path / "out" / "recipe.yaml")
    assert main(["slice", str(tmp_path / "out"), "--layers", "3", "--recipe", gone]) == 2
    assert "validation.tsv" in capsys.readouterr().err
    assert main(["slice", str(tmp_path / "out"), "--layers", "3", "--set", "eval.limt=3"]) == 2
    assert "limt" in capsys.readouterr().err
    assert not (tmp_path / "out-3-layers").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "6"], "6 layers would stay, the model has 6\n  at most 5"),
        (["--layers", "9"], "9 layers would stay, the model has 6"),
        (["--layers", "0,6"], "there is no layer 6: the model has 6, 0 to 5"),
        (["--layers", "2,1"], "does not increase"),
        (["--layers", "2", "--layers", "3", "--out", "x"], "one folder cannot hold 2 models"),
        (["--layers", "2", "--out", "out", "--force"], "the slice would replace what it is cut from"),
        (["--layers", "2", "--out", ".", "--force"], "the slice would replace what it is cut from"),
        (["--layers", "2", "--out", "model"], "the folder exists already"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(workspace, monkeypatch, capsys, words, message):
    monkeypatch.chdir(workspace)
    before = sorted(workspace.rglob("*"))
    assert main(["slice", "out", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert sorted(workspace.rglob("*")) == before


def test_a_folder_is_replaced_when_told(workspace, tmp_path):
    target = tmp_path / "slice"
    for keep in ([0], [1, 2]):
        _, part = slice_folder(workspace / "out", [keep], out=target, force=True, say=silent)
        assert part.layers == keep
        assert len(loaded(target).bert.encoder.layer) == len(keep)


def test_what_is_no_model_of_floats(workspace, tmp_path, capsys):
    for place in (tmp_path / "absent", workspace / "train.tsv", workspace):
        assert main(["slice", str(place), "--layers", "2"]) == 2
    told = capsys.readouterr().err
    assert "there is no folder" in told
    assert "is a file, not a model folder" in told
    assert "has no config.json" in told
    model = cook.apply(loaded(workspace / "out"), {"version": 1, "passes": ["quant.qat"]}).model
    model.save_pretrained(tmp_path / "integers")
    with pytest.raises(CookError, match="holds integers") as caught:
        slice_folder(tmp_path / "integers", [2], say=silent)
    assert "quant.qat" in caught.value.hint


@pytest.mark.parametrize("family", ["albert", "t5"])
def test_families_whose_layers_hang_together(family, tmp_path):
    families.made(family).save_pretrained(tmp_path / family)
    with pytest.raises(CookError, match=r"position biases too|runs several times") as caught:
        slice_folder(tmp_path / family, [1], say=silent)
    assert "1-layers" in caught.value.where
    assert [path.name for path in tmp_path.iterdir()] == [family]


def test_encoder_and_decoder_are_cut_by_numbers(tmp_path):
    families.made("bart").save_pretrained(tmp_path / "bart")
    with pytest.raises(CookError, match="layers of several kinds"):
        slice_folder(tmp_path / "bart", [2], say=silent)
    _, part = slice_folder(tmp_path / "bart", [(0, 2, 3)], say=silent)
    config = json.loads((part.path / "config.json").read_text())
    assert (config["encoder_layers"], config["decoder_layers"]) == (1, 2)
