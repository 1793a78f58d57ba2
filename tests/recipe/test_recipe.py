"""Recipes as a whole: loading, defaults, paths, digests, differences, and any text at all."""

import copy
import json
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.errors import CookError, RecipeErrors
from cook.recipe import Recipe, load_recipe, thaw
from cook.recipe.text.nodes import dump
from cook.recipe.text.parse import parse
from tests.recipe.schema.test_build import GOOD


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a recipe and some data; the current directory is another one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "here" / "recipe.yaml").write_text(GOOD)
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "here" / name).write_text("text\tlabel\n")
    return tmp_path / "here"


def test_defaults_and_access(folder):
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.name == "recipe.yaml"
    assert recipe.text == GOOD
    assert recipe.train.batch_size == 32
    assert recipe.train.steps is None
    assert recipe.data.train == "train"
    assert recipe.eval.latency is True
    assert recipe.teacher.path == "self"
    assert [(spec.name, spec.id) for spec in recipe.passes] == [("test.listen",) * 2, ("test.shrink",) * 2]
    assert dict(recipe.passes[1].options) == {
        "start": "0%", "end": "100%", "sparsity": 0.5, "schedule": "cubic", "rounds": 4, "include": ("*",)
    }  # fmt: skip
    with pytest.raises(AttributeError, match="epoch"):
        _ = recipe.train.epoch


def test_a_recipe_cannot_be_changed(folder):
    recipe = load_recipe(folder / "recipe.yaml")
    with pytest.raises(AttributeError):
        recipe.train.epochs = 4
    with pytest.raises(TypeError):
        recipe.value["train"]["epochs"] = 4
    with pytest.raises(AttributeError):
        recipe.name = "x"
    again = pickle.loads(pickle.dumps(recipe))
    assert again == recipe == copy.deepcopy(recipe)
    assert hash(again) == hash(recipe)
    assert json.dumps(thaw(recipe.value))


def test_places(folder):
    recipe = load_recipe(folder / "recipe.yaml", ["train.seed=3"])
    assert recipe.where("train", "epochs") == "recipe.yaml:5:17: train.epochs"
    assert recipe.where("train", "clip") == "recipe.yaml:5:1: train.clip"
    assert recipe.where("train", "seed") == "--set train.seed=3"
    assert recipe.passes[1].where == "recipe.yaml:8:5: passes[1]"
    assert recipe.error("passes[1].sparsity", "no").where == "recipe.yaml:8:29: passes[1].sparsity"
    assert str(recipe.error("data.text", "no", "hint")) == "recipe.yaml:4:31: data.text: no\n  hint"


def test_local_paths(folder, monkeypatch):
    path = folder / "recipe.yaml"
    assert load_recipe(path).model.path == "some/bert"
    assert load_recipe(path).output.path == str(folder / "out")
    (folder / "some" / "bert").mkdir(parents=True)
    (folder / "train").mkdir()
    recipe = load_recipe(path)
    assert recipe.model.path == str(folder / "some" / "bert")
    assert recipe.data.train == "train"
    path.write_text(GOOD.replace("text: s", "train: [./train.tsv, dev.tsv], validation: dev.tsv, text: s"))
    recipe = load_recipe(path)
    assert recipe.data.train == (str(folder / "train.tsv"), str(folder / "dev.tsv"))
    assert load_recipe(path, ["output.path=o"]).output.path == str(folder.parent / "elsewhere" / "o")
    monkeypatch.setenv("HOME", str(folder))
    assert load_recipe(path, ["data.train=~/dev.tsv"]).data.train == str(folder / "dev.tsv")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train=../here/trian.tsv", "there is no '../here/trian.tsv'\n  did you mean 'train.tsv'?"),
        ("data.validation=dev.csv", "--set data.validation=dev.csv: there is no 'dev.csv'"),
        ("model.path=/nowhere/model", "there is no folder /nowhere"),
        ("teacher.path=./x", "there is no './x'"),
        ("data.path=null", "found 'train', which is no file, and data.path names no data set"),
    ],
)
def test_missing_files(folder, override, said):
    with pytest.raises(CookError) as caught:
        load_recipe(folder / "recipe.yaml", [override])
    assert said in str(caught.value)


def test_a_model_from_a_recipe_is_a_path(folder):
    path = folder / "recipe.yaml"
    path.write_text(GOOD.replace("path: some/bert", "recipe: techer.yaml"))
    with pytest.raises(CookError, match=r"there is no 'techer\.yaml'"):
        load_recipe(path)
    (folder / "techer.yaml").touch()
    assert load_recipe(path).model.recipe == str(folder / "techer.yaml")


def test_all_mistakes_at_once_in_the_order_of_the_text(folder):
    path = folder / "recipe.yaml"
    text = GOOD.replace("epochs: 3", "epochs: 3, epochs: 4, sed: 1").replace(
        "sparsity: 0.5", "sparsity: !x 2"
    )
    path.write_text(text.replace("some/data", "./absent").replace("teacher: self", "teacher: []"))
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(path, ["eval.limit=0"])
    places = [problem.where.split(" ")[0] for problem in caught.value.problems]
    assert places == [f"recipe.yaml:{at}:" for at in ("3:10", "5:20", "5:31", "8:29")] + [
        "--set",
        "recipe.yaml:4:14:",
    ]


def test_digest_is_of_what_is_asked_for(folder):
    recipe = load_recipe(folder / "recipe.yaml")
    for same in (["output.path=x"], ["train.epochs=3.0"], ["train.batch_size=32"], ["teacher={path: self}"]):
        assert load_recipe(folder / "recipe.yaml", same).digest == recipe.digest
    for other in (["train.epochs=4"], ["passes[1].rounds=5"], ["passes[0]=null"]):
        assert load_recipe(folder / "recipe.yaml", other).digest != recipe.digest
    as_json = folder / "recipe.json"
    as_json.write_text(json.dumps(parse(GOOD, "r").value))
    assert load_recipe(as_json).digest == recipe.digest


def test_difference(folder):
    path = folder / "recipe.yaml"
    recipe = load_recipe(path)
    other = load_recipe(
        path, ["train.epochs=4", "passes[1].rounds=5", "teacher=null", "passes[0]=null", "output.path=x"]
    )
    assert recipe.difference(recipe) == []
    assert recipe.difference(load_recipe(recipe, ["train.epochs=4"])) == ["train.epochs: 3 -> 4"]
    assert 'teacher.path: "self" -> absent' in recipe.difference(other)


def test_written_back_it_reads_the_same(folder):
    (folder / "recipe.yaml").write_text(GOOD.replace("some/data", "./train.tsv"))
    recipe = load_recipe(folder / "recipe.yaml", ["data.label='1e-5'", "data.image=no"])
    away = folder.parent / "elsewhere" / "resolved.yaml"
    away.write_text(recipe.to_yaml())
    assert load_recipe(away).digest == recipe.digest
    away.write_text(recipe.to_yaml(away.parent))
    assert "../here/train.tsv" in away.read_text()
    assert str(folder) not in away.read_text()
    assert load_recipe(away).digest == recipe.digest
    assert load_recipe(away).output == recipe.output


def test_a_recipe_is_loaded_again_as_it_is(folder):
    recipe = load_recipe(folder / "recipe.yaml")
    assert load_recipe(recipe).digest == recipe.digest
    assert load_recipe(recipe, ["train.epochs=1"]).train.epochs == 1
    assert load_recipe(thaw(recipe.value)).digest == recipe.digest
    assert load_recipe(recipe.value).digest == recipe.digest
    part = load_recipe({"version": 1, "passes": ["test.listen"]}, partial=True)
    assert (part.has("model"), part.train, part.has("output")) == (False, None, False)
    with pytest.raises(RecipeErrors):
        load_recipe(part)


class Odd:
    pass


RING: dict = {}
RING["model"] = RING


@pytest.mark.parametrize(
    "value",
    [{"version": Odd()}, {1: 2}, RING, {"a": float("nan")}, {"a": 2**64}, {"\ud800": 1}, {"a": b"x"}, 3],
)  # fmt: skip
def test_dicts_that_no_text_could_say(value):
    with pytest.raises(CookError):
        load_recipe(value)


PRINTABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | PRINTABLE
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["no", "=", "<<", "1e-5", "0o17", "~", "2024-01-01", "1:30", "a\x85b\u2028\ufeff"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PRINTABLE, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=60)
@given(VALUES)
def test_any_value_is_written_and_read_back(value):
    again = parse(dump({"a": value}), "r").value
    assert again == {"a": value}
    assert json.dumps(again) == json.dumps({"a": value})


def outcome(path, data: bytes) -> None:
    path.write_bytes(data)
    start = time.perf_counter()
    try:
        recipe = load_recipe(path)
    except CookError as error:
        said = str(error)
    else:
        said = "recipe."
        assert isinstance(recipe, Recipe)
        path.with_name("again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        assert load_recipe(path.with_name("again.yaml")).digest == recipe.digest
    assert said.startswith(("recipe.", str(path)))
    assert time.perf_counter() - start < 10


@pytest.fixture(scope="module", params=["recipe.yaml", "recipe.json"])
def scratch(request, tmp_path_factory):
    return tmp_path_factory.mktemp("texts") / request.param


WORDS = "null 1e999 .nan 0x - [ ] { } : , ' \" # &a *a !!int !x | > ? @ ` % --- ... <<: \\ \0 \x85 \ufeff"
SNIPPETS = st.sampled_from(
    ["\n", "\t", "- ", ": ", "&a ", "%YAML 1.2\n", "\u2028", "\U0001f600", *WORDS.split(" ")]
)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda t: t.encode("utf-8", "surrogatepass"))
       | st.lists(SNIPPETS, max_size=15).map(lambda parts: "".join(parts).encode()))  # fmt: skip
def test_any_text_is_a_recipe_or_an_error(scratch, data):
    outcome(scratch, data)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 12), SNIPPETS | st.just("")), max_size=3))
def test_any_mutation_is_a_recipe_or_an_error(scratch, edits):
    text = GOOD if scratch.suffix == ".yaml" else json.dumps(parse(GOOD, "r").value)
    for at, size, new in edits:
        text = text[:at] + new + text[at + size :]
    outcome(scratch, text.encode())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_value_anywhere_is_a_recipe_or_an_error(scratch, data):
    value = parse(GOOD, "r").value
    spot = value
    while True:
        key = data.draw(st.sampled_from(list(spot) if isinstance(spot, dict) else range(len(spot))))
        if not isinstance(spot[key], (dict, list)) or not spot[key] or data.draw(st.booleans()):
            break
        spot = spot[key]
    spot[key] = data.draw(VALUES)
    outcome(scratch, (json.dumps(value) if scratch.suffix == ".json" else dump(value)).encode())


def test_a_recipe_with_sections_replaced(folder):
    recipe = load_recipe(folder / "recipe.yaml")
    other = recipe.replace(train={"epochs": 7}, output={"path": "elsewhere"})
    assert (other.train.epochs, other.train.batch_size) == (7, recipe.train.batch_size)
    assert other.output.path.endswith("elsewhere")
    assert other.where("data", "path") == recipe.where("data", "path") != recipe.where("train", "epochs")
    assert recipe.replace().digest == recipe.digest
    fewer = recipe.replace(without=0)
    assert [each.name for each in fewer.passes] == [each.name for each in recipe.passes[1:]]
    assert fewer.passes[0].where.partition(": ")[0] == recipe.passes[1].where.partition(": ")[0]
    assert recipe.replace(teacher=None, passes=[]).teacher is None
    with pytest.raises(CookError, match=r"train\.epochs"):
        recipe.replace(train={"epochs": -1})
