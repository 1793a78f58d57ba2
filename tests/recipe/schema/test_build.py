"""The schema, and what a person is told about each mistake against it."""

import json
import subprocess
import sys

import pytest
from jsonschema import Draft202012Validator

from cook.recipe.schema.build import check, schema
from cook.recipe.schema.shape import at, fill, takes_null, walk
from cook.recipe.text.parse import parse

GOOD = """\
version: 1
model: {path: some/bert, task: text-classification}
teacher: self
data: {path: some/data, text: sentence}
train: {epochs: 3}
passes:
  - test.listen
  - test.shrink: {sparsity: 0.5}
output: {path: out}
"""


def mistakes(text: str, **options) -> list[str]:
    document = parse(text, "r.yaml")
    return [str(error) for error in check(document.value, document.marks, "r.yaml", **options)]


def test_the_schema_is_one_and_takes_recipes_as_written():
    Draft202012Validator.check_schema(schema())
    json.dumps(schema())
    assert mistakes(GOOD) == []
    assert Draft202012Validator(schema()).is_valid(parse(GOOD, "r").value)
    filled = fill(schema(), parse(GOOD, "r").value)
    assert Draft202012Validator(schema()).is_valid(filled)


def test_every_key_says_what_it_is():
    def keys(part, path=""):
        for name, inner in part.get("properties", {}).items():
            yield f"{path}.{name}", inner
            yield from keys(inner, f"{path}.{name}")

    for path, inner in keys(schema()):
        assert inner.get("description"), path
        if "default" in inner:
            assert Draft202012Validator(inner).is_valid(inner["default"]), path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1\n", "", "r.yaml:1:1: version: missing; expected 1"),
        ("version: 1", "version: 2", "r.yaml:1:10: version: found 2, expected 1"),
        ("version: 1", "version: true", "version: found true, expected 1"),
        ("path: some/bert, ", "", "model: found none, expected exactly one of config, path and recipe"),
        ("some/bert", "some/bert, recipe: x", "found path and recipe, expected exactly one"),
        ("path: some/bert", "config: {}", "r.yaml:2:9: model.config.model_type: missing"),
        ("task: text-classification", "tsk: x", "unknown key 'tsk'\n  did you mean 'task'?"),
        (", task: text-classification", "", "model.task: missing; a model that meets data needs a task"),
        ("text-classification", "text_classification", "did you mean 'text-classification'?"),
        ("teacher: self", "teacher: 3", "r.yaml:3:10: teacher: found 3, expected a text that is"),
        ("teacher: self", "teacher: {dtype: float32}", "teacher.path: missing"),
        ("teacher: self\n", "", "r.yaml:1:1: teacher: missing; test.listen needs it"),
        ("train: {epochs: 3}\n", "", "train: missing; test.listen needs it"),
        ("text: sentence", "text: [a, b, c]", "data.text: found a list of 3"),
        ("text: sentence", "trust_remote_code: true", "'trust_remote_code' belongs in model"),
        ("epochs: 3", "epochs: 0", "r.yaml:5:17: train.epochs: found 0, expected a number above 0 or null"),
        ("epochs: 3", "epochs: '3'", "write 3, without quotes"),
        ("epochs: 3", "steps: 1_000", "expected a whole number of at least 1 or null\n  write 1000"),
        ("epochs: 3", "epochs: 3, batch_size: 2.5", "found 2.5, expected a whole number"),
        ("epochs: 3", "epochs: 3, batch_size: true", "found true, expected a whole number"),
        ("epochs: 3", "steps: 1e300", "found 1e+300"),
        ("epochs: 3", "epochs: 3, betas: [0.9]", "found a list of 1, expected a list of 2, each a number"),
        ("epochs: 3", "epochs: 3, betas: [0.9, 1]", "train.betas[1]: found 1, expected a number of at"),
        ("epochs: 3", "epochs: 3, gradient_checkpointing: yes", "expected true or false\n  write true"),
        ("epochs: 3", "epochs: 3, warmup: soon", "train.warmup: found 'soon', which is no point"),
        ("epochs: 3", "epochs: 3, warmup: null", "train.warmup: found nothing (null), expected a point"),
        ("epochs: 3", "epochs: 3, schedule: linaer", "did you mean 'linear'?"),
        ("train: {epochs: 3}", "train: {epochs: 3}\nseed: 3", "r.yaml:6:1: seed: unknown key"),
        ("train: {epochs: 3}", "trian: {epochs: 3}", "did you mean 'train'?"),
        ("output: {path: out}", "output: out", "write {path: out}"),
        ("output: {path: out}", "output:", "output: missing; expected a mapping"),
        ("{path: out}", "{path: out, shard_size: big}", "expected a text like '5GB'"),
        ("{path: out}", "{path: out, shard_size: 5GiB}", "expected a text like '5GB'"),
        ("{path: out}", "{path: out, shard_size: 0KB}", "expected a text like '5GB'"),
        ("- test.listen\n", "- test.lisen\n", "r.yaml:7:5: passes[0]: there is no pass 'test.lisen'\n  did"),
        ("- test.listen\n", "- 3\n", "passes[0]: found 3, expected"),
        ("- test.listen\n", "- {}\n", "passes[0]: found 0 keys"),
        ("- test.listen\n", "- test.listen: 3\n", "passes[0]: found 3, expected a mapping"),
        ("- test.listen\n", "- test.listen:\n    temperature: 2\n", "indent the options of test.listen"),
        (": {sparsity: 0.5}", "", "r.yaml:8:5: passes[1].sparsity: missing; expected a number"),
        ("sparsity: 0.5", "sparsity: 1", "r.yaml:8:29: passes[1].sparsity: found 1, expected"),
        ("sparsity: 0.5", "sparsity: 50%", "write 0.5"),
        ("sparsity: 0.5", "sparsity: 80", "\n  write 0.8"),
        ("sparsity: 0.5", "sparsity: 99.5", "\n  write 0.995"),
        ("sparsity: 0.5", "sparsity: '80'", "\n  write 0.8"),
        ("sparsity: 0.5", "sparsity: 80 %", "\n  write 0.8"),
        ("sparsity: 0.5", "sparsity: 1.5", "\n  sparsity: share of zeros"),
        ("sparsity: 0.5", "sparsity: 100", "\n  sparsity: share of zeros"),
        ("sparsity: 0.5", "sparsity: '0,8'", "\n  write 0.8"),
        ("sparsity: 0.5", "sparsity: much", "\n  sparsity: share of zeros"),
        ("epochs: 3", "epochs: 3, learning_rate: 1-e4", "\n  write 1e-4"),
        ("epochs: 3", "epochs: 3, learning_rate: 2.5 -e-5", "\n  write 2.5e-5"),
        ("epochs: 3", "epochs: 3, learning_rate: 1e- 4", "\n  write 1e-4"),
        ("epochs: 3", "epochs: 3, learning_rate: 1e-4f", "\n  write 1e-4"),
        ("epochs: 3", "epochs: 3, learning_rate: 10^-4", "\n  write 1e-4"),
        ("epochs: 3", "epochs: 3, learning_rate: 1e\u22124", "\n  write 1e-4"),
        ("epochs: 3", "epochs: 3, learning_rate: -1e-4f", "\n  learning_rate: Peak learning rate of AdamW"),
        ("epochs: 3", "steps: '1,000'", "\n  write 1000"),
        ("text-classification", "token-classification", "token-classification is not supported yet; the"),
        ("text-classification", "fill_mask", "fill_mask is not supported yet; the tasks are text-"),
        ("text-classification", "sequence-classification", "\n  did you mean 'text-classification'?"),
        ("text-classification", "chess", "\n  the tasks are text-classification and image-classification"),
        ("sparsity: 0.5", "sparsty: 0.5", "r.yaml:8:19: passes[1].sparsty: unknown key 'sparsty'"),
        ("sparsity: 0.5", "sparsity: 0.5, include: x", "write [x]"),
        ("sparsity: 0.5", "sparsity: 0.5, start: 9%, end: 8%", "r.yaml:8:50: passes[1].end: the pass ends"),
        ("sparsity: 0.5", "sparsity: 0.5, start: 4 epochs", "4 epochs is past the end of the run"),
        (
            "sparsity: 0.5",
            "sparsity: 0.5, rounds: 13, schedule: linear",
            "r.yaml:8:42: passes[1].rounds: 13 rounds cannot be linear\n  write 12",
        ),
    ],
)  # fmt: skip
def test_one_mistake_is_told_once(old, new, said):
    assert old in GOOD
    found = mistakes(GOOD.replace(old, new, 1))
    assert len(found) == 1, found
    assert said in found[0]


@pytest.mark.parametrize("value", [None, 3, "x", [], [1]])
def test_what_is_no_mapping(value):
    (error,) = check(value, {}, "<dict>")
    assert "expected a mapping" in error.message


def test_partial_recipes():
    text = "version: 1\npasses: [test.listen, {test.shrink: {sparsity: 0.5}}]"
    assert mistakes(text, partial=True) == []
    assert len(mistakes(text)) == 5
    assert "sparsity" in mistakes("version: 1\npasses: [test.shrink]", partial=True)[0]


def test_places_in_the_schema():
    whole = schema()
    assert at(whole, ("train", "epochs"))["exclusiveMinimum"] == 0
    assert at(whole, ("passes", 3, "test.shrink", "sparsity"))["minimum"] == 0
    assert at(whole, ("train", "epoch")) is None
    assert at(whole, ("train", "epoch", "x")) is None
    assert takes_null(at(whole, ("train", "clip")))
    assert not takes_null(at(whole, ("train", "seed")))
    places = [path for path, part, _ in walk(whole, parse(GOOD, "r").value) if part.get("x-path")]
    assert places == [("model", "path"), ("data", "path"), ("output", "path")]


def test_importing_recipes_loads_no_torch():
    code = "import sys, cook.recipe; sys.exit(bool({'torch', 'transformers', 'datasets'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
