"""Students by layers, by config and by path: what they give, what they are told, what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.hub.load import Origin, origin_of
from cook.model.hub.student import make
from tests.helpers import families, tiny
from tests.helpers.reshaped import auto_class
from tests.helpers.reshaped import make as reshaped

SIZES: dict[str, Any] = {"vocab_size": 23, "pad_token_id": 0, "intermediate_size": 32, "hidden_size": 16}
SIZES = {**SIZES, "num_attention_heads": 4, "max_position_embeddings": 40, **tiny.LABELS}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
MORE = {
    "roberta": (RobertaForSequenceClassification, RobertaConfig(num_hidden_layers=4, **SIZES)),
    "electra": (
        ElectraForSequenceClassification,
        ElectraConfig(num_hidden_layers=4, embedding_size=8, **SIZES),
    ),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig(
            n_layers=4, n_heads=4, dim=16, hidden_dim=32, vocab_size=23, pad_token_id=0, **tiny.LABELS
        ),
    ),
    "qwen2": (
        Qwen2ForSequenceClassification,
        Qwen2Config(
            num_hidden_layers=4,
            num_key_value_heads=2,
            layer_types=SLIDING,
            use_sliding_window=True,
            sliding_window=3,
            **SIZES,
        ),
    ),
}
FAMILIES = (*tiny.FAMILIES, *MORE)


def source_of(family: str, layers: int = 4) -> Any:
    """A model of four layers whose weights are large enough for a layer to matter."""
    if family in MORE:
        torch.manual_seed(0)
        cls, config = MORE[family]
        model: Any = cls(copy.deepcopy(config))
    else:
        model = tiny.model(family, layers=layers)
    for parameter in model.parameters():
        parameter.data.mul_(5 if parameter.ndim == 2 else 1)
    return model.eval()


def error(key: str, message: str, hint: str | None = None) -> CookError:
    return CookError(message, where=f"student.{key}", hint=hint)


def logits(model: Any, family: str = "bert") -> torch.Tensor:
    batch = tiny.batch("vit" if family == "vit" else "bert")
    with torch.no_grad():
        found: torch.Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return found


def without(model: Any, dropped: list[int]) -> Any:
    """The model with some layers handing on what they are given: the reference."""

    def hand_on(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    model = copy.deepcopy(model)
    layers = Anatomy(model).layers
    for number in dropped:
        model.get_submodule(layers[number]).register_forward_hook(hand_on, with_kwargs=True)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_layers_give_what_the_source_gives_without_the_others(family, tmp_path):
    source = source_of(family)
    before = copy.deepcopy(source.state_dict())
    student = make(source, {"layers": [1, -1]}, error)
    expected = logits(without(source, [0, 2]), family)
    assert torch.equal(logits(student, family), expected)
    assert not torch.allclose(logits(source, family), expected, atol=1e-3)
    assert len(Anatomy(student).layers) == 2
    assert student.config.num_hidden_layers == 2
    assert student.config.id2label == tiny.LABELS["id2label"]
    # The source is as it was, and shares nothing.
    for parameter in student.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    assert source.config.num_hidden_layers == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shallower_student_is_a_plain_folder(family, tmp_path):
    student = make(source_of(family), {"layers": [0, 3]}, error)
    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in config
    loaded, info = type(student).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(loaded.eval(), family), logits(student, family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("section", [{"layers": [0, 2]}, {"config": {"hidden_size": 8}}])
def test_on_meta_a_student_has_the_same_shapes(family, section):
    source = source_of(family)
    meta = make(copy.deepcopy(source).to("meta"), section, error)
    student = make(source, section, error)
    assert all(each.is_meta for each in meta.parameters())
    shapes = {name: each.shape for name, each in student.named_parameters()}
    assert {name: each.shape for name, each in meta.named_parameters()} == shapes
    assert meta.config.to_dict() == student.config.to_dict()


def test_lists_of_a_config_that_have_one_entry_a_layer_are_cut():
    student = make(source_of("qwen2"), {"layers": [0, 1, 3]}, error)
    assert student.config.layer_types == [SLIDING[0], SLIDING[1], SLIDING[3]]
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]


@pytest.mark.parametrize("cls", [GPT2LMHeadModel, BertForMaskedLM])
def test_tied_weights_stay_tied(cls):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "vocab_size": 23}
    kind = GPT2Config if cls is GPT2LMHeadModel else BertConfig
    source = cls(kind(bos_token_id=2, eos_token_id=3, **sizes)).eval()
    for section in ({"layers": [0, 2]}, {"config": {"num_hidden_layers": 1}}):
        student = make(source, section, error)
        assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    student = make(source, {"layers": [0, 2]}, error)
    assert torch.equal(student.get_input_embeddings().weight, source.get_input_embeddings().weight)


def test_a_generator_keeps_its_settings():
    source = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=4, vocab_size=23))
    source.generation_config.max_length = 77
    assert make(source, {"layers": [1]}, error).generation_config.max_length == 77


def test_type_mode_and_origin_go_on():
    source = source_of("bert").to(torch.bfloat16).train().requires_grad_(False)
    source.cook_origin = Origin(notes=["a note"], dtype=torch.float16, bytes=17)
    student: Any = make(source, {"layers": [1, 2]}, error)
    assert student.dtype == torch.bfloat16
    assert student.training
    assert all(each.requires_grad for each in student.parameters())
    assert origin_of(student) == Origin(dtype=torch.float16, bytes=17)
    random = origin_of(make(source, {"config": {"hidden_size": 8}}, error))
    assert (random.dtype, random.bytes, random.new_head) == (torch.float16, 17, True)
    assert random.notes == ["the student starts from random weights"]
    source.cook_origin.new_head = True
    assert origin_of(make(source, {"layers": [0]}, error)).new_head


def fails(words: str, source: Any, **section: Any) -> CookError:
    with pytest.raises(CookError, match=words) as found:
        make(source, section, error)
    assert str(found.value.where).startswith("student.")
    return found.value


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([4], "there is no layer 4: the model has 4 layers, 0 to 3"),
        ([-5], "there is no layer -5"),
        ([1, 1], "layer 1 stands twice"),
        ([3, -1], "layer 3 stands twice"),
        ([2, 0], "0 comes after 2"),
        ([-1, -2], "2 comes after 3"),
    ],
)
def test_layers_that_are_not_there_or_do_not_increase(layers, words):
    failure = fails(words, source_of("bert"), layers=layers)
    assert failure.where == "student.layers"
    assert "0 to 3" in str(failure)


def test_sources_whose_layers_cannot_be_chosen():
    fails("reshaped by cook", reshaped("bert", "narrow"), layers=[0])
    by_number = source_of("gpt2")
    by_number.config.scale_attn_by_inverse_layer_idx = True
    fails("divides attention by a layer's number", by_number, layers=[0])
    fails("layers of several kinds", families.made("bart"), layers=[0])
    fails("runs several times", families.made("albert"), layers=[0])
    fails("position biases too", families.made("t5"), layers=[0])
    unknown = source_of("bert")
    unknown.config.model_type = "unheard"
    unknown.bert.encoder.layer[0].more = torch.nn.Linear(2, 2)  # or it would be inferred
    fails("where the layers of a 'unheard' model are", unknown, layers=[0])
    other = source_of("bert")
    other.bert.pooler = torch.nn.Identity()
    fails("not what its config says", other, layers=[0])
    fails("not what its config says", other.to("meta"), layers=[0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_config_changes_some_keys_and_keeps_the_rest(family, tmp_path):
    source = source_of(family, layers=3)
    changes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    student = make(source, {"config": changes}, error)
    assert type(student) is type(source)
    mine, theirs = student.config.to_dict(), source.config.to_dict()
    known = {source.config.attribute_map.get(key, key): value for key, value in changes.items()}
    assert {key: mine[key] for key in known} == known
    derived = {"pooler_output_size", "head_dim", "dtype", "architectures", "layer_types", "_name_or_path"}
    kept = theirs.keys() - known.keys() - derived
    assert {key: mine[key] for key in kept} == {key: theirs[key] for key in kept}
    assert logits(student, family).shape == (4, 2)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, family), logits(student, family))


def test_what_a_config_derives_is_derived_anew():
    assert make(source_of("vit"), {"config": {"hidden_size": 8}}, error).config.pooler_output_size == 8
    llama = source_of("llama")
    assert make(llama, {"config": {"hidden_size": 32}}, error).config.head_dim == 8
    llama.config.head_dim = 6  # a choice of its own, which stays
    assert make(llama, {"config": {"hidden_size": 32}}, error).config.head_dim == 6
    uneven = source_of("qwen2")
    fails("`layer_types`", uneven, config={"num_hidden_layers": 2})
    types = {"num_hidden_layers": 2, "layer_types": SLIDING[:2]}
    assert make(uneven, {"config": types}, error).config.layer_types == SLIDING[:2]


def test_another_family_takes_labels_and_tokens_and_nothing_else():
    source = source_of("bert")
    source.config.initializer_range = 0.3
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    student = make(source, {"config": {"model_type": "roberta", **sizes}}, error)
    assert type(student) is RobertaForSequenceClassification
    assert student.config.vocab_size == 23
    assert student.config.pad_token_id == 0
    assert student.config.label2id == tiny.LABELS["label2id"]
    assert student.config.initializer_range == RobertaConfig().initializer_range
    # The same family is no change of it.
    again = make(source, {"config": {"model_type": "bert", "hidden_size": 8}}, error)
    assert again.config.initializer_range == 0.3
    image = make(source_of("vit"), {"config": {"model_type": "deit", "patch_size": 4, **sizes}}, error)
    assert logits(image, "vit").shape == (4, 2)


def test_random_weights_are_those_of_the_seed():
    source = source_of("bert")
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(make(source, {"config": {"num_hidden_layers": 1}}, error).state_dict())
    same, other = (
        [torch.equal(made[0][name], each[name]) for name in made[0] if "dense.weight" in name]
        for each in made[1:]
    )
    assert all(same)
    assert not any(other)


@pytest.mark.parametrize(
    ("config", "where", "words"),
    [
        ({"num_hidden_layer": 1}, "config.num_hidden_layer", "did you mean 'num_hidden_layers'"),
        ({"xyz": 1}, "config.xyz", "no key 'xyz'\n.*its keys are"),
        ({"num_labels": 3}, "config.num_labels", "labels are the model's"),
        ({"id2label": {0: "a"}}, "config.id2label", "labels are the model's"),
        ({"vocab_size": 30}, "config.vocab_size", "its vocab_size is 23, not 30"),
        ({"model_type": "brt"}, "config.model_type", "did you mean 'bert'"),
        ({"hidden_size": 10}, "config", "no bert model can be built from it: .*10"),
        ({"num_hidden_layers": 0}, "config", "at least one layer, found 0"),
        ({"hidden_size": "wide"}, "config", "no bert model can be built from it: .*hidden_size"),
        ({"model_type": "vit", "hidden_size": 8}, "config", "vit"),
        ({"model_type": "gpt2", "hidden_layers": 2}, "config.hidden_layers", "the config of a gpt2 model"),
    ],
)
def test_configs_that_are_refused(config, where, words):
    assert fails(words, source_of("bert"), config=config).where == f"student.{where}"


def test_other_pixels_are_refused():
    assert fails("its image_size is 8, not 16", source_of("vit"), config={"image_size": 16}).where == (
        "student.config.image_size"
    )
    make(source_of("vit"), {"config": {"image_size": [8, 8], "hidden_size": 8}}, error)


def test_another_model_by_its_path(tmp_path):
    tiny.folder(tmp_path / "other", layers=1, width=8, seed=3)
    student = make(source_of("bert"), {"path": tmp_path / "other"}, error)
    expected = AutoModelForSequenceClassification.from_pretrained(tmp_path / "other").eval()
    assert torch.equal(logits(student), logits(expected))
    assert not origin_of(student).new_head
    assert origin_of(student).bytes
    planned = make(source_of("bert").to("meta"), {"path": tmp_path / "other"}, error)
    assert planned.device.type == "meta"
    assert planned.num_parameters() == student.num_parameters()


def test_a_headless_student_gets_the_labels_of_the_model(tmp_path):
    config = BertConfig(num_hidden_layers=1, **{key: SIZES[key] for key in SIZES if "label" not in key})
    BertModel(config).save_pretrained(tmp_path)
    student = make(source_of("bert"), {"path": str(tmp_path)}, error, auto_class=auto_class("bert"))
    assert student.config.id2label == tiny.LABELS["id2label"]
    assert origin_of(student).new_head
    assert origin_of(student).notes


def test_other_models_that_are_refused(tmp_path):
    config = BertConfig(num_hidden_layers=1, **{**SIZES, "id2label": {0: "positive", 1: "negative"}})
    config.label2id = {"positive": 0, "negative": 1}
    BertForSequenceClassification(config).save_pretrained(tmp_path / "swapped")
    words = "the student's labels are {'negative': 1.*the model's are {'negative': 0"
    fails(words, source_of("bert"), path=tmp_path / "swapped")
    fails("there is no folder", source_of("bert"), path=str(tmp_path / "gone"))
    vit = tiny.model("vit")
    vit.config.image_size = 12
    type(vit)(vit.config).save_pretrained(tmp_path / "vit")
    fails("its image_size is 8, not 12", source_of("vit"), path=tmp_path / "vit")


@pytest.mark.parametrize("key", ["revision", "trust_remote_code", "allow_pickle"])
def test_what_is_about_a_path_needs_one(key):
    fails("about a student's path", source_of("bert"), layers=[0], **{key: "main"})
