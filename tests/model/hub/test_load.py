"""Models by folder or config: what comes back, what is told, what is refused."""

import json
import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertModel, ViTImageProcessorPil

from cook.errors import CookError
from cook.model.hub.head import holds
from cook.model.hub.load import load, load_processor
from cook.model.hub.quantizer import blueprint_of
from cook.model.nn.integer import IntLinear
from tests.helpers import families, tiny
from tests.helpers.reshaped import auto_class, logits, make


def error(key, message, hint=None):
    return CookError(message, where=f"recipe.yaml:1:1: model.{key}", hint=hint)


def read(
    path: Any = None, family: str = "bert", labels: Any = None, meta: bool = False, **options: Any
) -> Any:
    section = SimpleNamespace(path=None if path is None else str(path), **options)
    return load(section, auto_class=auto_class(family), labels=labels, meta=meta, error=error)


def fails(words, path=None, **options):
    with pytest.raises(CookError, match=words) as found:
        read(path, **options)
    assert str(found.value.where).startswith("recipe.yaml:1:1: model.")
    return found.value


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_folder_comes_back_in_float32(tmp_path, family):
    model = tiny.model(family).eval()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    found = read(tmp_path, family)
    assert found.dtype == torch.float32
    assert found.cook_origin.dtype == torch.bfloat16
    assert found.cook_origin.bytes == 2 * model.num_parameters()
    assert not found.cook_origin.notes
    assert not found.cook_origin.new_head
    state = model.state_dict()
    assert all(torch.equal(value, state[name].float()) for name, value in found.state_dict().items())


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["narrow", "both"])
def test_a_folder_of_cook_comes_back_as_floats(tmp_path, family, kind):
    model = make(family, kind)
    model.save_pretrained(tmp_path)
    found = read(tmp_path, family)
    assert not any(isinstance(each, IntLinear) for each in found.modules())
    assert {edit.op for edit in blueprint_of(found).edits} == {"resize"}
    assert bool(found.cook_origin.notes) == (kind == "both")
    planned = read(tmp_path, family, meta=True)
    assert all(each.is_meta for each in planned.parameters())
    shapes = {name: each.shape for name, each in found.named_parameters()}
    assert {name: each.shape for name, each in planned.named_parameters()} == shapes
    assert blueprint_of(planned) == blueprint_of(found)


def test_a_config_becomes_a_model():
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = read(
        config={**config, "vocab_size": 30, "intermediate_size": 8}, labels=["a", "b", "c"], path=None
    )
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.classifier.out_features == 3
    assert model.cook_origin.new_head
    assert read(config=config, meta=True).device.type == "meta"
    fails("no model_type", config={"hidden_size": 3})
    fails("cannot be loaded|does not", config={"model_type": "nothing"})
    fails("hidden_size", config={**config, "hidden_size": "wide"})


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_a_new_head_is_told(tmp_path, kind, monkeypatch):
    kind(tiny.model().config).save_pretrained(tmp_path)
    reports: list[str] = []
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [collector := logging.Handler()])
    monkeypatch.setattr(collector, "emit", lambda record: reports.append(record.getMessage()))
    model = read(tmp_path, labels=["a", "b", "c"])
    assert not reports  # transformers tells it too, in a table of all absent weights
    assert model.num_labels == 3
    assert model.cook_origin.new_head
    (note,) = model.cook_origin.notes
    assert "classifier" in note
    assert read(tmp_path, labels=["a", "b", "c"], meta=True).num_labels == 3


def test_a_head_keeps_its_labels_unless_renamed(tmp_path):
    tiny.folder(tmp_path)
    assert read(tmp_path, labels=["a", "b", "c"]).config.id2label == {0: "negative", 1: "positive"}
    assert read(tmp_path, labels=None, **{}).num_labels == 2
    section = SimpleNamespace(path=str(tmp_path), labels=["bad", "good"])
    named: Any = load(section, auto_class=auto_class("bert"), error=error)
    assert named.config.id2label[1] == "good"
    section.labels = ["one"]
    with pytest.raises(CookError, match="1 labels are given"):
        load(section, auto_class=auto_class("bert"), error=error)


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def truncate(folder):
    os.truncate(folder / "model.safetensors", 900)


def cut_weights(folder):
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 40)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny.model().state_dict(), folder / "pytorch_model.bin")


DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "not a model folder"),
    "bad json": (lambda f: (f / "config.json").write_text("{"), "not a valid JSON|cannot be loaded"),
    "no type": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "unknown type": (lambda f: edit_config(f, model_type="zzz"), "zzz"),
    "other width": (lambda f: edit_config(f, intermediate_size=7), r"is \(32.*asks for \(7"),
    "more layers": (lambda f: edit_config(f, num_hidden_layers=3), "lacks 16 weights.*encoder.layer.2"),
    "wrong value": (lambda f: edit_config(f, hidden_size="a"), "hidden_size"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "pickle": (pickled, "pickle"),
    "header": (truncate, "damaged"),
    "payload": (cut_weights, "damaged"),
    "other method": (
        lambda f: edit_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"already quantised \(gptq\)",
    ),
    "later cook": (
        lambda f: edit_config(f, quantization_config={"quant_method": "cook", "blueprint": {"version": 2}}),
        "upgrade cook",
    ),
    "adapter": (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "PEFT adapter"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_error(tmp_path, damage):
    tiny.model().save_pretrained(tmp_path)
    break_it, words = DAMAGES[damage]
    break_it(tmp_path)
    with pytest.raises(CookError, match=words):
        read(tmp_path)


def test_pickles_are_read_only_when_allowed(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    pickled(tmp_path)
    assert "allow_pickle: true" in fails("pickle", tmp_path).hint
    assert torch.equal(logits(read(tmp_path, allow_pickle=True), "bert"), logits(tiny.model().eval(), "bert"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04broken")
    fails("damaged|cannot be loaded", tmp_path, allow_pickle=True)


def test_a_missing_folder_names_its_neighbour(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")
    assert "'model'" in fails("there is no folder", tmp_path / "modle").hint
    assert "model" in fails("not a model folder", tmp_path).hint
    fails("is a file", tmp_path / "model" / "config.json")


def test_an_unreachable_hub_is_told():
    fails("hub cannot be reached", "nobody/has-this-model")


def test_another_head_of_the_same_checkpoint_is_not_random_in_silence(tmp_path):
    tiny.model("vit").save_pretrained(tmp_path)
    fails("does not know", tmp_path)
    tiny.model("bert").save_pretrained(tmp_path / "bert")
    section = SimpleNamespace(path=str(tmp_path / "bert"))
    found: Any = load(section, auto_class=AutoModelForMaskedLM.__name__, error=error)
    assert "cls" in found.cook_origin.notes[0]


def test_processors(tmp_path):
    tiny.folder(tmp_path / "text")
    tiny.model("vit").save_pretrained(tmp_path / "bare")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "image")

    def processor(section: Any, kind: str) -> Any:
        return load_processor(section, kind)

    def section(path=None, tokenizer=None):
        return SimpleNamespace(path=path and str(tmp_path / path), tokenizer=tokenizer)

    assert processor(section("text"), "tokenizer")("good film")["input_ids"][0] == 2
    assert processor(section("bare", str(tmp_path / "text")), "tokenizer").pad_token_id == 0
    assert processor(section("image"), "image").size["height"] == 8
    assert processor(section("bare"), "image") is None
    assert processor(section("bare"), "tokenizer") is None
    assert processor(section(), "image") is None
    with pytest.raises(CookError, match="holds no tokenizer"):
        processor(section("text", str(tmp_path / "bare")), "tokenizer")
    (tmp_path / "text" / "tokenizer.json").write_text("{")
    with pytest.raises(CookError, match="cannot be loaded"):
        processor(section("text"), "tokenizer")


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama", "t5", "vit"])
@pytest.mark.parametrize("labels", [["no", "yes"], ["no", "perhaps", "yes"]])
def test_a_new_head_takes_the_place_of_the_old(tmp_path, family, labels):
    """Of another size or of the same: all that is outside of the base model, and nothing else."""
    model = families.made(family)
    model.save_pretrained(tmp_path)
    found = read(tmp_path, family, labels=labels, head="new")
    assert found.config.id2label == dict(enumerate(labels))
    assert found.cook_origin.new_head
    assert any("a new one starts from random weights" in note for note in found.cook_origin.notes)
    before, after = model.state_dict(), found.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    matrices = {name for name, value in after.items() if holds(found, name) and value.ndim == 2}
    assert matrices
    assert matrices <= changed <= {name for name in after if holds(found, name)}
    assert all(value.isfinite().all() for value in after.values())
    assert read(tmp_path, family, labels=labels, head="new", meta=True).config.num_labels == len(labels)


def test_a_head_that_is_kept_or_new_already_says_so(tmp_path):
    families.made("bert").save_pretrained(tmp_path / "whole")
    found = read(tmp_path / "whole", labels=["a", "b", "c"], head="keep")
    assert not found.cook_origin.new_head
    assert found.config.num_labels == 2
    families.made("bert").bert.save_pretrained(tmp_path / "base")
    found = read(tmp_path / "base", labels=["a", "b", "c"], head="new")
    assert found.cook_origin.new_head
    assert found.config.num_labels == 3


def test_a_new_head_needs_one_that_can_go(tmp_path):
    make("bert", "integers").save_pretrained(tmp_path)
    where = fails("was compressed and cannot be replaced", tmp_path, labels=["a", "b"], head="new").where
    assert str(where).endswith("model.head")


@pytest.mark.parametrize(
    "maps",
    [{"label2id": {"b": 1, "a": 0}}, {"id2label": {"0": "a", "1": "b"}}],
    ids=["label2id", "id2label"],
)
def test_labels_are_taken_from_the_map_that_is_there(tmp_path, maps):
    tiny.model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (tmp_path / "config.json").write_text(json.dumps({**config, **maps}))
    assert read(tmp_path).config.id2label == {0: "a", 1: "b"}
