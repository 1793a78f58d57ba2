"""Folders that go through save and load in this process, in every way that transformers offers."""

import copy
import json
import pickle
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from transformers.pytorch_utils import Conv1D

import cook
from cook.errors import CookError
from cook.model.hub.quantizer import attach_quantizer, blueprint_of
from cook.model.nn.integer import IntLinear
from tests.helpers import families, tiny
from tests.helpers.reshaped import FFN, auto_class, inputs, logits, make, narrow

KINDS = ("narrow", "integers", "both")


def loaded(path, family="bert", **options):
    return getattr(transformers, auto_class(family)).from_pretrained(path, **options)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_and_again(tmp_path, family, kind):
    model = make(family, kind)
    model.save_pretrained(tmp_path / "once")
    once = loaded(tmp_path / "once", family)
    once.save_pretrained(tmp_path / "twice", max_shard_size="2KB")
    assert len(list((tmp_path / "twice").glob("*.safetensors"))) > 1
    twice = loaded(tmp_path / "twice", family)
    expected = logits(model, family)
    for each in (once, twice):
        assert torch.equal(logits(each, family), expected)
        assert blueprint_of(each) == blueprint_of(model)
        assert each.is_quantized == (kind != "narrow")
        assert {n: p.requires_grad for n, p in each.named_parameters()} == {
            n: p.requires_grad for n, p in model.named_parameters()
        }


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_auto_model_and_back(tmp_path, family):
    model = make(family, "both")
    model.save_pretrained(tmp_path / "head")
    base = AutoModel.from_pretrained(tmp_path / "head")
    wanted = model.base_model(**inputs(family)).last_hidden_state
    assert torch.equal(base(**inputs(family)).last_hidden_state, wanted)
    base.save_pretrained(tmp_path / "base")
    again = AutoModel.from_pretrained(tmp_path / "base")
    assert torch.equal(again(**inputs(family)).last_hidden_state, wanted)
    headed = loaded(tmp_path / "base", family)
    assert torch.equal(headed.base_model(**inputs(family)).last_hidden_state, wanted)
    headed.save_pretrained(tmp_path / "headed")
    assert torch.equal(logits(loaded(tmp_path / "headed", family), family), logits(headed, family))


def test_the_base_model_of_a_model_in_memory_saves_itself(tmp_path):
    model = make("bert", "both")
    model.base_model.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "head")
    wanted = model.base_model(**inputs("bert")).last_hidden_state
    assert torch.equal(
        AutoModel.from_pretrained(tmp_path / "base")(**inputs("bert")).last_hidden_state, wanted
    )
    assert torch.equal(logits(loaded(tmp_path / "head"), "bert"), logits(model, "bert"))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(tmp_path, device_map):
    model = make("bert", "both")
    model.save_pretrained(tmp_path)
    assert torch.equal(
        logits(loaded(tmp_path, device_map=device_map).to("cpu"), "bert"), logits(model, "bert")
    )


@pytest.mark.parametrize("away", ["bert", "bert.embeddings"])
def test_offloaded_to_disk(tmp_path, away):
    model = make("bert", "both")
    model.save_pretrained(tmp_path / "model")
    places = {"bert.embeddings": "cpu", "bert.encoder": "cpu", "bert.pooler": "cpu", "classifier": "cpu"}
    places = {name: "disk" if name.startswith(away) else place for name, place in places.items()}
    back = loaded(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk")
    assert torch.equal(logits(back, "bert"), logits(model, "bert"))
    back.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(loaded(tmp_path / "again"), "bert"), logits(model, "bert"))


def test_integers_offloaded_to_disk_are_not_drawn_anew(tmp_path):
    """GPT-2 initialises by name whatever does not seem loaded, integers too."""
    model = make("gpt2", "integers")
    model.save_pretrained(tmp_path / "model")
    back = loaded(tmp_path / "model", "gpt2", device_map={"": "disk"}, offload_folder=tmp_path / "disk")
    assert torch.equal(logits(back, "gpt2"), logits(model, "gpt2"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bfloat16_keeps_integers_and_scales(tmp_path, family):
    make(family, "both").save_pretrained(tmp_path)
    model = loaded(tmp_path, family, dtype=torch.bfloat16)
    layers: list[Any] = [each for each in model.modules() if isinstance(each, IntLinear)]
    for layer in layers:
        assert layer.weight.dtype == torch.int8
        assert layer.scale.dtype == layer.input_scale.dtype == torch.float32
        assert layer.bias is None or layer.bias.dtype == torch.bfloat16
    batch = {n: v.bfloat16() if v.is_floating_point() else v for n, v in inputs(family).items()}
    assert model(**batch).logits.dtype == torch.bfloat16


def test_a_reshaped_float_model_casts_copies_and_pickles(tmp_path):
    make("bert", "narrow").save_pretrained(tmp_path)
    model = loaded(tmp_path)
    expected = logits(model, "bert")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, "bert"), expected)
        assert blueprint_of(twin) == blueprint_of(model)
    assert model.half().dtype == torch.float16
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    assert model.float().dtype == torch.float32


def test_integer_models_copy_and_pickle():
    model = make("gpt2", "both")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, "gpt2"), logits(model, "gpt2"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["integers", "both"])
def test_dequantize_gives_float_modules(tmp_path, family, kind):
    make(family, kind).save_pretrained(tmp_path / "int")
    model = loaded(tmp_path / "int", family).dequantize()
    assert not any(isinstance(each, IntLinear) for each in model.modules())
    assert any(isinstance(each, Conv1D) for each in model.modules()) == (family == "gpt2")
    assert not model.is_quantized
    assert bool(blueprint_of(model).edits) == (kind == "both")
    assert all(each.requires_grad for each in model.parameters())
    model.save_pretrained(tmp_path / "float")
    assert torch.equal(logits(loaded(tmp_path / "float", family), family), logits(model, family))
    plain = "quantization_config" not in json.loads((tmp_path / "float" / "config.json").read_text())
    assert plain == (kind == "integers")


def trainer(model, folder):
    batch = tiny.batch("bert")
    rows = Dataset.from_dict({name: value.tolist() for name, value in batch.items()})
    settings = TrainingArguments(
        output_dir=str(folder), max_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    return Trainer(model=model, args=settings, train_dataset=rows)


def test_trainer_trains_a_reshaped_float_model(tmp_path):
    make("bert", "narrow").save_pretrained(tmp_path / "model")
    model = loaded(tmp_path / "model")
    before = model.get_parameter(f"{FFN['bert'][0]}.weight").detach().clone()
    work = trainer(model, tmp_path / "run")
    work.train()
    assert not torch.equal(model.get_parameter(f"{FFN['bert'][0]}.weight"), before)
    work.save_model(str(tmp_path / "trained"))
    assert torch.equal(logits(loaded(tmp_path / "trained"), "bert"), logits(model.eval(), "bert"))


def test_trainer_refuses_integers_and_says_how_to_go_on(tmp_path):
    model = make("bert", "integers")
    with pytest.raises(CookError, match="dequantize"):
        trainer(model, tmp_path)
    trainer(model.dequantize(), tmp_path).train()


def test_compressing_a_folder_again_adds_to_its_blueprint(tmp_path):
    make("bert", "narrow").save_pretrained(tmp_path / "one")
    model = narrow(loaded(tmp_path / "one"), "bert", width=3)
    assert len(blueprint_of(model).edits) == 4
    model.save_pretrained(tmp_path / "two")
    assert torch.equal(logits(loaded(tmp_path / "two"), "bert"), logits(model, "bert"))


def test_without_edits_nothing_is_set(tmp_path):
    model = make("bert", "plain")
    attach_quantizer(model, blueprint_of(model))
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert getattr(model, "hf_quantizer", None) is None


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_lock_is_a_norm_of_the_base_model(family):
    model = make(family, "integers")
    lock = str(blueprint_of(model).lock)
    assert lock.startswith(f"{model.base_model_prefix}.")
    assert model.get_parameter(lock).ndim == 1
    assert model.get_parameter(lock).is_floating_point()


def test_damaged_integers_are_refused(tmp_path):
    make("bert", "integers").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    for name, new, words in [
        ("classifier.scale", None, "holds no classifier.scale"),
        ("classifier.weight", state["classifier.weight"].float(), "classifier.weight is stored as F32"),
        ("bert.embeddings.LayerNorm.bias", torch.ones(16, dtype=torch.int8), "is stored as I8"),
        ("classifier.weight", state["classifier.weight"].to(torch.int32), "torch.int32"),
    ]:
        changed = {key: value for key, value in state.items() if key != name}
        save_file(changed if new is None else {**changed, name: new}, file, metadata={"format": "pt"})
        with pytest.raises(CookError, match=words):
            loaded(tmp_path)


def test_a_changed_blueprint_is_refused(tmp_path):
    make("bert", "both").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["blueprint"]["version"] = 9
    file.write_text(json.dumps(config))
    with pytest.raises(CookError, match="upgrade cook"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["BartForCausalLM", "BartModel", "BartForConditionalGeneration"])
def test_a_part_loads_without_the_lock_of_another(name, tmp_path):
    model = AutoModelForSeq2SeqLM.from_config(families.made("bart").config).eval()
    passes = [{"prune.heads": {"sparsity": 0.25, "importance": "magnitude"}}]
    made = cook.apply(model, {"version": 1, "passes": passes}).model
    assert made.hf_quantizer.blueprint.lock.startswith("model.encoder.")
    made.save_pretrained(tmp_path)
    part = getattr(transformers, name).from_pretrained(tmp_path)
    theirs = dict(part.named_parameters())
    ours = {f"{prefix}{key}": each for key, each in made.named_parameters() for prefix in ("", "model.")}
    ours |= {key.removeprefix("model."): each for key, each in made.named_parameters()}
    assert all(torch.equal(each, ours[key]) for key, each in theirs.items() if key in ours)
    assert len([key for key in theirs if key in ours]) > 10
