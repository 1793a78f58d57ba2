"""Reading: YAML 1.2 and JSON values, their places, and texts that are refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cook.errors import CookError, RecipeErrors
from cook.recipe.text.parse import parse, read
from cook.recipe.text.place import Mark, spell, split, where
from cook.recipe.text.values import plain


def failure(text: str, kind: str = "yaml") -> CookError:
    with pytest.raises(CookError) as caught:
        parse(text, "r.yaml", kind)
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("3e5", 3e5),
        (".5", 0.5),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("<<", "<<"),
        ("=", "="),
        ("30%", "30%"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    found = parse(f"a: {text}", "r").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_a_whole_number_as_a_key_is_its_text():
    expected = {"layers": {"0": 1, "10": 3, "-1": 5}}
    assert parse("layers: {0: 1, 10: 3, -1: 5}", "r.yaml").value == expected
    assert plain({"layers": {0: 1, 10: 3, -1: 5}}, "r") == expected
    for source in ({1: 0, "1": 0}, {True: 0}, {None: 0}, {1.5: 0}):
        with pytest.raises(CookError):
            plain(source, "r")


def test_marks_name_keys_and_values():
    document = parse("a:\n  b: 1\n  c: [x, {d: 2}]\n", "r.yaml")
    assert document.marks["a", "b"] == Mark(2, 6, key=Mark(2, 3))
    assert document.marks["a", "c", 1, "d"] == Mark(3, 14, key=Mark(3, 11))
    assert where(document.marks, "r.yaml", ("a", "b")) == "r.yaml:2:6: a.b"
    assert where(document.marks, "r.yaml", ("a", "b"), key=True) == "r.yaml:2:3: a.b"
    assert where(document.marks, "r.yaml", ("a", "absent")) == "r.yaml:1:1: a.absent"


def test_json_has_the_same_values_and_places():
    text = '{\n\t"a": {"b": 1e-5, "c\\/": ["\\ud83d\\ude00", null, true, -0.5]},\n\t"z": ""\n}'
    document = parse(text, "r.json", "json")
    assert document.value == json.loads(text)
    assert document.marks["a", "b"] == Mark(2, 13, key=Mark(2, 8))
    assert document.marks["a", "c/", 1] == Mark(2, text.index("null") - 1)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(JSON, st.sampled_from([None, 2, "\t"]), st.booleans())
def test_any_json_is_read_as_python_reads_it(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse(text, "r.json", "json").value == value


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("", "r.yaml:1:1", "empty"),
        ("# only a comment\n", "r.yaml:1:1", "empty"),
        ("a: 1\nb: 2\na: 3", "r.yaml:3:1: a", "line 1 and on line 3"),
        ("a: !!python/object:os.system x", "r.yaml:1:4: a", "!!python/object:os.system"),
        ("a: !foo x", "r.yaml:1:4: a", "'!foo'"),
        ("a: !!int x", "r.yaml:1:4: a", "invalid literal"),
        ("a: !!null x", "r.yaml:1:4: a", "null"),
        ("a: !!map [1]", "r.yaml:1:4: a", "!!map"),
        ("1.5: x", "r.yaml:1:1", "as a key"),
        ("0x1: x", "r.yaml:1:1", "as a key"),
        ("01: x", "r.yaml:1:1", "as a key"),
        ("a: {1: x, '1': y}", "r.yaml:1:11: a.1", "stands twice"),
        ("true: x", "r.yaml:1:1", "as a key"),
        ("? [a]\n: x", "r.yaml:1:3", "as a key"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1", "another document"),
        ("a: .inf", "r.yaml:1:4: a", "finite"),
        ("a: .nan", "r.yaml:1:4: a", "finite"),
        ("a: 1e999", "r.yaml:1:4: a", "finite"),
        ("a: " + "9" * 5000, "r.yaml:1:4: a", "64 bits"),
        ("a: 0x" + "f" * 17, "r.yaml:1:4: a", "64 bits"),
        ("a:\n\tb: 1", "r.yaml:2:1", "cannot start any token"),
        ("a: [1, 2", "r.yaml:1:9", "not valid YAML"),
        ("a: b: c", "r.yaml:1:5", "mapping values are not allowed"),
        ("a: *nobody", "r.yaml:1:4", "undefined alias"),
        ("a: &a [*a]", "r.yaml:1:4: a[0]", "inside of what it repeats"),
        ('a: "\\ud800"', "r.yaml:1:4: a", "half characters"),
        ('a: "\\0"', "r.yaml:1:4: a", "NUL"),
        ('a: "\\UFFFFFFFF"', "r.yaml:1", "not valid YAML"),
        ("a: b\n\x01: 2", "r.yaml:2:1", "cannot hold"),
        ("[" * 500, "r.yaml:1:65", "64 levels"),
        ("a: " + "x" * 1_000_001, "r.yaml", "over 1,000,000"),
    ],
)
def test_refused_yaml(text, place, said):
    error = failure(text)
    assert error.where.startswith(place)
    assert said in error.message


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        (" \n", "r.yaml:1:1", "empty"),
        ('{"a": 1,}', "r.yaml:1:", "not valid JSON"),
        ('{"a": 1 // no\n}', "r.yaml:1:9", "not valid JSON"),
        ('{"a": 1, "a": 2}', "r.yaml:1:10: a", "stands twice"),
        ('{"a": NaN}', "r.yaml:1:7", "NaN"),
        ('{"a": -Infinity}', "r.yaml:1:7", "Infinity"),
        ('{"a": ' + "9" * 5000 + "}", "r.yaml:1:7: a", "64 bits"),
        ("[" * 100_000, "r.yaml:1:", ""),
        ("[" * 70 + "]" * 70, "r.yaml:1:65", "64 levels"),
        ("[" + "0," * 10_000 + "0]", "r.yaml:1:", "10,000"),
        ('"\\ud800"', "r.yaml:1:1", "half characters"),
    ],
)
def test_refused_json(text, place, said):
    error = failure(text, "json")
    assert error.where.startswith(place)
    assert said in error.message


def test_alias_bombs_stop_at_the_cap():
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    assert "10,000" in failure(bomb).message
    chain = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 90))
    assert "64 levels" in failure(chain).message
    assert parse("a: &a [1]\nb: *a", "r").value == {"a": [1], "b": [1]}


def test_all_readable_mistakes_at_once():
    error = failure("a: !x 1\nb: 1\nb: 2\ntrue: x\nc: .nan")
    assert isinstance(error, RecipeErrors)
    assert [problem.where.split(":")[1] for problem in error.problems] == ["1", "3", "4", "5"]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text("version: 1")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    (tmp_path / "huge.yaml").write_bytes(b"#" * 1_000_001)
    for name, said in {
        "recipe.yml": "did you mean 'recipe.yaml'?",
        "absent/recipe.yaml": "no folder",
        ".": "folder",
        "latin.yaml": "latin.yaml:2:7",
        "huge.yaml": "1,000,000 bytes",
        "nul\0.yaml": "cannot be read",
        "x" * 300: "cannot be read",
    }.items():
        with pytest.raises(CookError) as caught:
            read(tmp_path / name)
        assert said in str(caught.value), name
    assert read(tmp_path / "bom.yaml").value == {"a": 1}


def test_paths_are_written_and_read_alike():
    assert spell(("passes", 1, "a.b", "c", 2)) == "passes[1].c[2]"
    assert split("passes[1].c[2]") == ("passes", 1, "c", 2)
    assert split("passes[a.b#2].c") == ("passes", "a.b#2", "c")
    for wrong in ("", ".", "a.", "a..b", "a[", "a[]", "a]b"):
        assert split(wrong) is None, wrong
