"""BMCook's configs: what becomes of each key, and what is refused."""

import json

import pytest
import torch
from torch.nn import functional

from cook.distill.logits import soft_cross_entropy
from cook.errors import CookError
from cook.recipe import bmcook, load_recipe, thaw
from cook.recipe.bmcook import convert, is_bmcook, to_yaml
from cook.recipe.recipe import load_document
from cook.recipe.text.parse import parse
from cook.recipe.text.parse import read as read_document
from tests.helpers import bound, tiny

CONFIG = {
    "distillation": {
        "ce_scale": 0.5,
        "ce_temp": 2,
        "mse_hidn_scale": 3,
        "mse_hidn_module": ["[post]bert.encoder:[post]bert.encoder", "[pre]a.b:[post]c.0.d"],
        "mse_hidn_proj": True,
        "mse_att_scale": 0,
        "mse_att_module": ["[placehold]"],
    },
    "pruning": {
        "is_pruning": True,
        "pruning_mask_path": "mask.bin",
        "pruned_module": ["ffn.ffn.w_in.w.weight", "input_embedding"],
        "mask_method": "m4n2_1d",
    },
    "quantization": {"is_quant": True, "quantized_module": ["ffn"]},
    "MoEfication": {"is_moefy": False, "first_FFN_module": ["ffn.layernorm_before_ffn"]},
}
RECIPE = {
    "version": 1,
    "teacher": "self",
    "passes": [
        {"distill.logits": {"temperature": 2, "weight": 0.125}},
        {
            "distill.hidden": {
                "map": {"bert.encoder[out]": "bert.encoder[out]", "a.b[in]": "c.0.d[out]"},
                "normalize": True,
                "weight": 6,
                "projection": "each",
            }
        },
        {"prune.weights": {"pattern": "2:4", "include": ["*ffn.ffn.w_in.w", "*input_embedding*"]}},
        {"quant.qat": {"include": ["*ffn*"]}},
    ],
}


@pytest.fixture(autouse=True)
def registry():
    """The shipped passes, and not the stand-ins that the tests beside these use."""


def refused(config, **changes):
    with pytest.raises(CookError) as caught:
        convert({**config, **changes})
    return getattr(caught.value, "problems", [caught.value])


def test_every_part_has_its_pass():
    made = convert(CONFIG)
    assert made.value == RECIPE
    assert list(made.value) == ["version", "teacher", "passes"]


def test_what_is_off_is_nothing():
    off = {
        "distillation": {"ce_scale": 0, "mse_hidn_scale": 0, "mse_hidn_module": ["[placehold]"]},
        "pruning": {"is_pruning": False, "mask_method": "sprune", "sprune": {"criterion": "l0"}},
        "quantization": {"is_quant": False, "quantized_module": ["x"]},
        "MoEfication": {"is_moefy": False},
    }
    assert convert(off).value == {"version": 1, "passes": []}
    assert convert({"quantization": {}}).value == {"version": 1, "passes": []}
    assert load_recipe(convert(off).value, partial=True).passes == ()


def test_quantisation_without_names_is_all_linear_layers():
    assert convert({"quantization": {"is_quant": True}}).value["passes"] == [
        {"quant.qat": {"include": ["*"]}}
    ]


def test_sprune_beside_another_method_means_nothing():
    pruning = {**CONFIG["pruning"], "sprune": {"criterion": "l0"}}
    made = convert({"pruning": pruning})
    assert made.value["passes"] == [RECIPE["passes"][2]]
    assert any("sprune is left out" in note for note in made.notes)


@pytest.mark.parametrize("temperature", [0.5, 1, 4])
def test_the_logits_learn_as_much_as_in_bmcook(temperature):
    """BMCook's `-(p log q).sum(classes).mean(examples) * ce_scale`, which has no factor T^2."""
    made = convert({"distillation": {"ce_scale": 0.7, "ce_temp": temperature}})
    options = made.value["passes"][0]["distill.logits"]
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, 3, generator=generator)
    gradients = []
    for ours in (True, False):
        student = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
        if ours:
            loss = soft_cross_entropy(student, teacher, options["temperature"]) * options["weight"]
        else:
            target = functional.softmax(teacher / temperature, dim=-1)
            guess = functional.log_softmax(student / temperature, dim=-1)
            loss = -(target * guess).sum(dim=1).mean() * 0.7
        loss.backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients, atol=1e-7)


def test_hidden_states_are_compared_as_in_bmcook():
    """Behind a LayerNorm all vectors are of one length, and its mean over the batch is that of each."""
    name = "bert.encoder.layer.{}.output.LayerNorm"
    modules = [f"[post]{name.format(mine)}:[post]{name.format(theirs)}" for mine, theirs in ((0, 1), (1, 0))]
    config = {"distillation": {"mse_hidn_scale": 0.3, "mse_hidn_module": modules}}
    student, teacher = tiny.model(seed=0).eval(), tiny.model(seed=1).eval()
    batch = {**tiny.batch(), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
    session = bound.session(student, *convert(config).value["passes"], teacher=teacher)
    session.before_step(0)
    found = session.module.eval()(batch)["hidden"]
    session.after_step()
    session.finish()
    with torch.no_grad():
        outputs = [model(**batch, output_hidden_states=True) for model in (student, teacher)]
    mine, theirs = (each.hidden_states for each in outputs)
    expected = sum(
        (one / one.norm(dim=-1).mean() - other / other.norm(dim=-1).mean()).pow(2).mean() * 0.3
        for one, other in ((mine[1], theirs[2]), (mine[2], theirs[1]))
    )
    assert torch.allclose(found, expected, rtol=1e-4)


def test_a_config_without_a_temperature_has_bmcooks_own():
    made = convert({"distillation": {"ce_scale": 2}})
    assert made.value["passes"] == [{"distill.logits": {"temperature": 1, "weight": 2}}]


def test_what_has_no_counterpart_is_named_all_at_once():
    told = refused(
        CONFIG,
        distillation={"mse_att_scale": 1},
        pruning={
            "is_pruning": True,
            "mask_method": "sprune",
            "sprune": {"criterion": "l0", "target_sparsity": 1},
        },
        MoEfication={"is_moefy": True, "first_FFN_module": ["x"]},
    )
    assert [error.where for error in told] == [
        "<dict>: distillation.mse_att_scale",
        "<dict>: pruning.mask_method",
        "<dict>: pruning.sprune.criterion",
        "<dict>: pruning.sprune.target_sparsity",
        "<dict>: MoEfication.is_moefy",
        "<dict>: MoEfication.first_FFN_module",
    ]


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({"quantisation": {}}, "quantisation", "did you mean 'quantization'?"),
        ({"model": {}}, "model", "it has distillation, pruning"),
        ({"pruning": {"is_prunning": True}}, "pruning.is_prunning", "did you mean 'is_pruning'?"),
        ({"pruning": None}, "pruning", "expected an object"),
        ({"pruning": {"is_pruning": "yes"}}, "pruning.is_pruning", "found 'yes', expected true or false"),
        (
            {"pruning": {**CONFIG["pruning"], "mask_method": "fine-grained"}},
            "pruning.mask_method",
            "found 'fine-grained', expected 'm4n2_1d'",
        ),
        (
            {"pruning": {**CONFIG["pruning"], "mask_method": "m4n2_2d"}},
            "pruning.mask_method",
            "m4n2_1d is 2:4",
        ),
        (
            {"pruning": {"is_pruning": True, "mask_method": "m4n2_1d"}},
            "pruning.pruned_module",
            "names nothing",
        ),
        (
            {"quantization": {"is_quant": True, "quantized_module": "ffn"}},
            "quantization.quantized_module",
            "list",
        ),
        ({"distillation": {"ce_scale": True}}, "distillation.ce_scale", "expected a number of at least 0"),
        ({"distillation": {"ce_scale": -1}}, "distillation.ce_scale", "expected a number of at least 0"),
        ({"distillation": {"ce_scale": 1, "ce_temp": 0}}, "distillation.ce_temp", "a temperature above 0"),
        ({"distillation": {"mse_hidn_scale": 1}}, "distillation.mse_hidn_module", "names no pair"),
        (
            {"distillation": {"mse_hidn_scale": 1, "mse_hidn_module": ["[placehold]"]}},
            "distillation.mse_hidn_module[0]",
            "expected '[post]student.module:[post]teacher.module'",
        ),
        (
            {"distillation": {"mse_hidn_scale": 1, "mse_hidn_module": ["[pre]a:[pre]a", "[pre]a:[pre]b"]}},
            "distillation.mse_hidn_module[1]",
            "a[in] stands twice",
        ),
    ],
)
def test_mistakes_are_told_with_their_key(changes, place, words):
    (error,) = refused(CONFIG, **changes)
    assert error.where == f"<dict>: {place}"
    assert words in str(error)


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (CONFIG, True),
        ({"pruning": {}}, True),
        ({"version": 1, "pruning": {}}, False),
        ({"passes": [], "pruning": {}}, False),
        ({"model": {}}, False),
        ([CONFIG], False),
        (None, False),
    ],
)
def test_what_a_config_is(value, is_one):
    assert is_bmcook(value) is is_one


def test_the_yaml_is_the_same_recipe_with_what_differs_in_comments():
    text = to_yaml(convert(CONFIG), "mine.json")
    assert parse(text, "r.yaml").value == RECIPE
    head = text[: text.index("version: 1")].splitlines()
    assert all(line.startswith("# ") and len(line) <= 110 for line in head)
    for words in ("mine.json", "0.5 / 2^2", "pruning_mask_path", "teacher", "passes[1].projection"):
        assert any(words in line for line in head), words


def read(file, overrides=(), *, partial=False):
    """The recipe that a config asks for, as `cook convert` checks it."""
    return load_document(bmcook.recipe_document(read_document(file)), file.parent, overrides, partial=partial)


def test_a_config_is_no_recipe(tmp_path):
    file = tmp_path / "bmcook.json"
    file.write_text(json.dumps(CONFIG))
    for source in (file, CONFIG):
        with pytest.raises(CookError, match=r"a config of BMCook, not a recipe\n.*cook convert"):
            load_recipe(source, partial=True)


def test_a_file_becomes_a_recipe(tmp_path):
    file = tmp_path / "bmcook.json"
    file.write_text(json.dumps(CONFIG, indent=1))
    sets = [
        "model.path=owner/model",
        "model.task=text-classification",
        "data.path=owner/data",
        "train.epochs=1",
    ]
    recipe = read(file, [*sets, "teacher=owner/teacher", "output.path=out", "passes[quant.qat].weights=int4"])
    ids = [each.id for each in recipe.passes]
    assert ids == ["distill.logits", "distill.hidden", "prune.weights", "quant.qat"]
    assert recipe.passes[0].options.weight == 0.125
    assert recipe.passes[1].options.projection == "each"
    assert recipe.passes[3].options.weights == "int4"
    assert recipe.teacher.path == "owner/teacher"
    assert recipe.text == file.read_text()
    assert recipe.digest == load_recipe(thaw(recipe.value)).digest


def test_mistakes_point_into_the_config(tmp_path):
    file = tmp_path / "bmcook.json"
    file.write_text(
        '{"quantization":\n {"is_quant": true,\n  "is_quant": false},\n "pruning":\n {"is_pruning": 1}}'
    )
    with pytest.raises(
        CookError, match=r"bmcook.json:3:3: quantization.is_quant: the key 'is_quant' stands twice"
    ):
        read(file)
    file.write_text('{"pruning":\n {"is_pruning": 1}, "MoEfication":\n {"is_moefy": true}}')
    with pytest.raises(CookError) as caught:
        read(file)
    first, second = caught.value.problems
    assert first.where == "bmcook.json:2:17: pruning.is_pruning"
    assert second.where == "bmcook.json:3:15: MoEfication.is_moefy"
    file.write_text('{"distillation": {\n"ce_scale": 1,\n"ce_temp": 1e-200}}')
    with pytest.raises(CookError) as caught:
        read(file, partial=True)
    assert caught.value.where == "bmcook.json:3:12: distillation.ce_temp"
    file.write_text('{"distillation": {\n"ce_scale": 1,\n"ce_temp": 2}}')
    assert read(file, partial=True).where("passes", 0, "temperature") == (
        "bmcook.json:3:12: passes[0].temperature"
    )
