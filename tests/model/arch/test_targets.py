"""From patterns to modules."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.targets import matching, select, within
from cook.model.nn.integer import IntLinear
from cook.model.nn.linear import is_linear
from cook.model.nn.surgery import replace
from cook.model.nn.transformed import transform
from tests.helpers import tiny

BERT = tiny.model("bert")
LINEAR = [name for name, module in BERT.named_modules() if isinstance(module, nn.Linear)]


def below(pattern: str) -> list[str]:
    return [name for name in LINEAR if re.match(pattern, name)]


def test_nothing_named_means_the_layers():
    assert select(Anatomy(BERT), None) == below(r"bert\.encoder\.layer\.")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("attention", r".*\.attention\."),
        ("ffn", r".*layer\.\d\.(intermediate|output)\."),
        ("layers[-1]", r".*layer\.1\."),
        ("layers[0:1].attention", r".*layer\.0\.attention"),
        ("head", "classifier"),
        ("*.query", r".*query"),
        ("bert.encoder.layer.[01].output.dense", r"bert\.encoder\.layer\.\d\.output\.dense"),
        (r"re:.*layer\.\d\.output", r".*layer\.\d\.output"),
        ("Linear", ".*"),
        ("BertPooler", r"bert\.pooler"),
        ("bert.pooler.dense", r"bert\.pooler"),
    ],
)
def test_every_kind_of_pattern(pattern, expected):
    assert select(Anatomy(BERT), [pattern]) == below(expected)


def test_exclusions_and_order():
    chosen = select(Anatomy(BERT), ["ffn", "attention"], ["*.query", "layers[1]"])
    assert chosen == [name for name in below(r".*layer\.0\.") if not name.endswith("query")]


def test_an_expression_must_match_the_whole_name():
    with pytest.raises(CookError, match="matches no module"):
        select(Anatomy(BERT), ["re:query"])
    with pytest.raises(CookError, match="no regular expression"):
        select(Anatomy(BERT), ["re:("])


@pytest.mark.parametrize(
    ("include", "exclude", "message", "hint"),
    [
        (["bert.encoder.layers"], None, "matches no module", "bert.encoder.layer"),
        (["atention"], None, "matches no module", "'attention'"),
        (["LayerNormm"], None, "matches no module", "'LayerNorm'"),
        (["zzzz"], None, "matches no module", "glob"),
        (["LayerNorm"], None, "matches no linear layer", "another kind"),
        (["ffn"], ["ffm"], "matches no module", "'ffn'"),
        (["ffn"], ["layers"], "no linear layer is left", None),
    ],
)
def test_what_matches_nothing_is_an_error_with_the_nearest_name(include, exclude, message, hint):
    with pytest.raises(CookError, match=message) as caught:
        select(Anatomy(BERT), include, exclude)
    assert hint is None or hint in caught.value.hint


def test_a_model_without_a_head_says_so():
    with pytest.raises(CookError, match="this bert model has no head"):
        matching(Anatomy(BERT.bert), "head")


def test_an_unknown_family_leaves_out_nothing_of_its_base():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    assert select(Anatomy(model), None) == ["0", "1.1"]
    assert select(Anatomy(model), ["Sequential"]) == ["1.1"]


def test_a_class_name_means_the_model_as_it_was_loaded():
    model, gpt2 = tiny.model("bert"), tiny.model("gpt2")
    plain, conv = select(Anatomy(model), ["Linear"]), select(Anatomy(gpt2), ["Conv1D"])
    transform(model, plain[0])
    replace(model, plain[1], IntLinear.from_linear(model.get_submodule(plain[1])))
    transform(gpt2, conv[0])
    replace(gpt2, conv[1], IntLinear.from_linear(gpt2.get_submodule(conv[1])))
    assert select(Anatomy(model), ["Linear"]) == plain
    assert select(Anatomy(gpt2), ["Conv1D"]) == conv
    assert select(Anatomy(model), ["TransformedLinear"]) == plain[:1]


@settings(max_examples=60, deadline=None)
@given(
    include=st.lists(
        st.sampled_from(["attention", "ffn", "layers[0]", "*.key", "head", "Linear"]), min_size=1
    ),
    exclude=st.lists(st.sampled_from(["*.query", "layers[1]", "ffn", "head"])),
)
def test_selection_is_a_set_difference_in_the_models_order(include, exclude):
    anatomy = Anatomy(BERT)

    def inside(patterns):
        roots = [root for pattern in patterns for root in matching(anatomy, pattern)]
        return {name for name in LINEAR if any(name == root or name.startswith(f"{root}.") for root in roots)}

    expected = [name for name in LINEAR if name in inside(include) - inside(exclude)]
    if expected:
        assert select(anatomy, include, exclude) == expected
    else:
        with pytest.raises(CookError, match="is left"):
            select(anatomy, include, exclude)


def test_within_compares_whole_names():
    assert within(["a.b", "a.bc", "a.b.c", "a"], ["a.b"]) == ["a.b", "a.b.c"]


def test_kinds():
    def embedding(module: nn.Module) -> bool:
        return isinstance(module, nn.Embedding)

    names = select(Anatomy(BERT), ["embeddings"], kind=embedding, what="embedding")
    assert len(names) == 3
    with pytest.raises(CookError, match="matches no embedding"):
        select(Anatomy(BERT), ["ffn"], kind=embedding, what="embedding")
    assert not any(is_linear(BERT.get_submodule(name)) for name in names)
