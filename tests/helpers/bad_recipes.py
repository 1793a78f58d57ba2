"""Recipes that must be refused, and what the one screen of error must say of each.

They lie in a folder with the good and bad models and tables that `test_bad_input.resources` makes.
"""

from __future__ import annotations

from typing import Any

RECIPE: dict[str, Any] = {
    "version": 1,
    "model": {"path": "./bert", "task": "text-classification"},
    "data": {"train": "train.tsv", "validation": "val.tsv", "text": "sentence", "label": "label"},
    "train": {"steps": 2, "batch_size": 8},
    "passes": [{"prune.weights": {"sparsity": 0.5}}],
    "eval": {"latency": False},
    "output": {"path": "out/small"},
}


UNTRAINED = {
    "task": "text-classification",
    "config": {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 23,
    },
}


def section(name: str, **changes: Any) -> dict[str, Any]:
    """The recipe with some keys of a section changed."""
    return {**RECIPE, name: {**RECIPE.get(name, {}), **changes}}


def passes(*listed: Any, **sections: Any) -> dict[str, Any]:
    """The recipe with other passes."""
    return {**RECIPE, **sections, "passes": list(listed)}


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "an empty recipe": ("", ["recipe.yaml:1:1: the recipe is empty", "version: 1"]),
    "no YAML": ("version: [1", ["recipe.yaml:1:"]),
    "an unknown key": (
        section("train", learning_rat=1),
        ["recipe.yaml:13:3: train.learning_rat: unknown key", "did you mean 'learning_rate'?"],
    ),
    "an unknown pass": (
        passes({"prune.weight": None}),
        ["passes[0]", "'prune.weight'", "did you mean 'prune.weights'?"],
    ),
    "a wrong type": (section("train", batch_size="many"), ["recipe.yaml:12:15: train.batch_size: ", "many"]),
    "a wrong range": (
        passes({"prune.weights": {"sparsity": 1.5}}),
        ["recipe.yaml:15:15: passes[0].sparsity: ", "1.5"],
    ),
    "a target without a match": (
        passes({"prune.weights": {"sparsity": 0.5, "include": ["atention"]}}),
        ["recipe.yaml:14:3: passes[0]", "'atention' matches no module", "did you mean 'attention'?"],
    ),
    "an exclusion without a match": (
        passes({"quant.qat": {"exclude": ["*.keys"]}}),
        ["recipe.yaml:14:3: passes[0]", "'*.keys' matches no module"],
    ),
    "a layer that is not there": (
        passes({"prune.weights": {"sparsity": 0.5, "include": ["layers[1:9]", "layers[7]"]}}),
        ["passes[0]", "layers[7]", "2 layers"],
    ),
    "a missing file": (
        section("data", train="trian.tsv"),
        ["recipe.yaml:6:10: data.train: ", "'trian.tsv'", "did you mean 'train.tsv'?"],
    ),
    "a missing text column": (
        section("data", text="sentense"),
        ["recipe.yaml:8:9: data.text: there is no column 'sentense'", "sentence, label"],
    ),
    "a missing label column": (
        section("data", label="lable"),
        ["recipe.yaml:9:10: data.label: there is no column 'lable'", "sentence, label"],
    ),
    "labels that the model does not have": (
        section("data", train="three.tsv"),
        ["recipe.yaml:9:10: data.label: ", "'2'", "'negative', 'positive'"],
    ),
    "an empty split": (
        section("data", validation="empty.tsv"),
        ["recipe.yaml:7:15: data.validation: ", "has no rows"],
    ),
    "a teacher with other labels": (
        passes("distill.logits", teacher="./teachers/labels"),
        ["teacher: the teacher's labels are {'negative': 1", "same order"],
    ),
    "a teacher with another tokenizer": (
        passes("distill.logits", teacher="./teachers/tokens"),
        ["teacher: the teacher's tokenizer", "one tokenizer"],
    ),
    "a teacher that is not there": (
        passes("distill.logits", teacher="./bart"),
        ["teacher.path: there is no './bart'", "did you mean 'bert'?"],
    ),
    "a teacher that was never trained": (
        {**passes("distill.logits", teacher="self"), "model": {**UNTRAINED, "tokenizer": "./bert"}},
        ["recipe.yaml:26:10: teacher: the model starts from random weights", "a recipe without passes"],
    ),
    "no teacher": (passes("distill.logits"), ["teacher: missing; distill.logits needs it", "teacher: self"]),
    "movement that nothing trains": (
        passes({"prune.weights": {"method": "movement", "sparsity": 0.5}}, train=None),
        ["train: missing; prune.weights needs it"],
    ),
    "nothing to calibrate with": (
        passes({"prune.weights": {"method": "wanda", "sparsity": 0.5}}, train=None, data=None),
        ["data: missing; prune.weights needs it"],
    ),
    "too little to calibrate with": (
        passes({"prune.weights": {"method": "sparsegpt", "sparsity": 0.5, "rows": 1}}),
        ["passes[0].rows: found ", "calibration tokens for the 16 inputs", "raise rows"],
    ),
    "one-shot pruning outside of the layers": (
        passes({"prune.weights": {"method": "wanda", "sparsity": 0.5, "include": ["head"]}}),
        ["passes[0].include: classifier lies outside of the layers", "exclude: [classifier]"],
    ),
    "a model that is not there": (
        section("model", path="./bart"),
        ["recipe.yaml:3:9: model.path: there is no './bart'", "did you mean 'bert'?"],
    ),
    "a folder that is no model": (
        section("model", path="./teachers"),
        ["recipe.yaml:3:9: model.path: ", "is not a model folder", "labels, tokens"],
    ),
    "a damaged weight file": (
        section("model", path="./damaged"),
        ["recipe.yaml:3:9: model.path: a weight file of ", "is damaged", "copy or download it again"],
    ),
    "a damaged config": (section("model", path="./unconfigured"), ["model.path: ", "config.json"]),
    "a model that another method quantised": (
        section("model", path="./gptq"),
        ["recipe.yaml:3:9: model.path: ", "already quantised (gptq)", "float model"],
    ),
    "a task that the model is not for": (
        section("model", task="image-classification"),
        ["model.path: ", "AutoModelForImageClassification does not know"],
    ),
    "more tokens than the model has positions": (
        section("data", max_length=4000),
        ["recipe.yaml:10:15: data.max_length: 4000 is more than the model's 32 positions"],
    ),
    "a schedule point past the end": (
        passes({"prune.weights": {"sparsity": 0.5, "start": 7}}),
        ["recipe.yaml:16:12: passes[0].start: step 7 is past the end", "train.steps is 2"],
    ),
    "a metric that is not measured": (
        section("train", select="best", metric="acuracy"),
        ["recipe.yaml:14:11: train.metric: there is no metric 'acuracy'", "did you mean 'accuracy'?"],
    ),
    "two passes that want the same layers": (
        passes("quant.qat", {"quant.qat": {"weights": "int4"}}),
        ["passes[1]: ", "is quantised by an earlier pass", "`exclude`"],
    ),
    "half precision on a CPU": (
        section("train", device="cpu", precision="fp16"),
        ["train.precision: the CPU does not train in fp16", "bf16"],
    ),
    "recipes in a circle": (
        {**RECIPE, "model": {"recipe": "first.yaml", "task": "text-classification"}},
        ["model.recipe: recipes need each other in a circle: first.yaml -> second.yaml -> first.yaml"],
    ),
}
