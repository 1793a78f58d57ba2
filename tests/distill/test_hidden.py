"""Any tensor to any tensor, against loops over examples, heads and tokens."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cook.distill.hidden import DISTANCES, valid_mean
from cook.distill.pairs import attended_mean
from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from tests.distill.own import same_in_parts_and_padded
from tests.helpers import bound, families, tiny
from tests.helpers.traces import differences

# Distances


def slow_distance(student: list[float], teacher: list[float], distance: str, normalize: bool) -> float:
    """Of two vectors, in Python's own floats."""
    lengths = [math.sqrt(sum(value * value for value in vector)) for vector in (student, teacher)]
    if distance == "cosine":
        return 1 - sum(one * other for one, other in zip(student, teacher, strict=True)) / math.prod(lengths)
    if normalize:
        student, teacher = (
            [value / length for value in vector]
            for vector, length in zip((student, teacher), lengths, strict=True)
        )
    gaps = [abs(one - other) for one, other in zip(student, teacher, strict=True)]
    return sum(gap**2 if distance == "mse" else gap for gap in gaps) / len(gaps)


VECTORS = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))


@settings(max_examples=50, deadline=None)
@given(case=VECTORS)
def test_distances(case):
    rows, width, seed = case
    both = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for name, function in DISTANCES.items():
        student = both[0].clone().requires_grad_()
        expected = [slow_distance(*pair, name, False) for pair in zip(*both.tolist(), strict=True)]
        found = function(student, both[1])
        assert found.tolist() == pytest.approx(expected, abs=1e-12)
        assert function(both[1], both[1]).abs().max() < 1e-12
        assert torch.autograd.gradcheck(function, (student, both[1]))


def padded(size: int, tokens: int, seed: int) -> tuple[torch.Generator, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(size, tokens, generator=generator) < 0.6
    valid[:, 0] = True
    return generator, valid


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 4), tokens=st.integers(1, 5), heads=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_means_over_what_counts(size, tokens, heads, seed):
    generator, valid = padded(size, tokens, seed)
    flat = torch.randn(size, tokens, generator=generator, dtype=torch.float64)
    by_head = torch.randn(size, heads, tokens, generator=generator, dtype=torch.float64)
    rows = [[token for token in range(tokens) if valid[row, token]] for row in range(size)]

    def slow(value) -> float:
        return (
            sum(sum(value(row, token) for token in kept) / len(kept) for row, kept in enumerate(rows)) / size
        )

    assert valid_mean(flat, valid).item() == pytest.approx(slow(lambda row, token: float(flat[row, token])))
    expected = slow(lambda row, token: float(by_head[row, :, token].sum()) / heads)
    assert valid_mean(by_head, valid).item() == pytest.approx(expected)
    # Positions know no examples.
    expected = slow(lambda row, token: float(flat[0, token]))
    assert valid_mean(flat[:1], valid).item() == pytest.approx(expected)
    # Pooled states know no tokens, and a model without a mask has no padding.
    assert valid_mean(flat[:, 0], valid).item() == pytest.approx(float(flat[:, 0].mean()))
    assert valid_mean(by_head, torch.ones_like(by_head).bool()).item() == pytest.approx(float(by_head.mean()))

    scores = torch.randn(size, heads, tokens, tokens, generator=generator, dtype=torch.float64)
    seen = (valid[:, :, None] & valid[:, None, :]).tril()
    total = 0.0
    for row, kept in enumerate(rows):
        places = [(query, key) for query, key in itertools.product(kept, repeat=2) if key <= query]
        values = [float(scores[row, head, query, key]) for head in range(heads) for query, key in places]
        total += sum(values) / len(values) / size
    assert attended_mean(scores, seen).item() == pytest.approx(total)


# In models


def slow_pair(student: Tensor, teacher: Tensor, options, valid: list[list[int]], seen=None) -> Tensor:
    """The mean over examples of the mean over what counts, entry by entry."""
    total = torch.zeros((), dtype=torch.float64)
    size = len(valid)
    for row in range(size):
        one, other, found = student[row], teacher[row], []
        if seen is not None:
            for head, query, key in itertools.product(range(one.shape[0]), valid[row], valid[row]):
                if seen[row][query][key]:
                    gap = one[head, query, key] - other[head, query, key]
                    found.append(gap * gap if options["distance"] == "mse" else gap.abs())
        elif one.dim() == 1:
            found.append(slow_vectors(one, other, options))
        elif one.dim() == 2:
            found.extend(slow_vectors(one[token], other[token], options) for token in valid[row])
        else:
            places = itertools.product(range(one.shape[0]), valid[row])
            found.extend(
                slow_vectors(one[head, token], other[head, token], options) for head, token in places
            )
        total = total + sum(found) / len(found) / size
    return total


def slow_vectors(one: Tensor, other: Tensor, options) -> Tensor:
    if options["distance"] == "cosine":
        return 1 - (one * other).sum() / ((one * one).sum() * (other * other).sum()).sqrt()
    if options["normalize"]:
        one, other = (each / (each * each).sum().sqrt() for each in (one, other))
    gap = one - other
    return (gap * gap if options["distance"] == "mse" else gap.abs()).mean()


def own(model, inputs, family: str) -> dict[str, Tensor]:
    """What a model says of its insides: the tensors by the names that they have in a recipe."""
    output = model(**inputs, output_hidden_states=True)
    states = output.hidden_states
    queries, keys, values = families.factors(model, 1, states[1])
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
    found = {
        "embeddings.output": states[0],
        "layers[0].output": states[1],
        "layers[1].attention.values": values,
        "layers[1].attention.scores": queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5,
        "logits": output.logits,
    }
    if family == "bert":
        found["bert.pooler[out]"] = model.bert.pooler(states[2])
        found["classifier[in]"] = found["bert.pooler[out]"]
    return found


STATES = {name: name for name in ("embeddings.output", "layers[0].output")}
CROSSED = {"embeddings.output": "layers[0].output", "layers[0].output": "embeddings.output"}
SCORES = {"layers[1].attention.scores": "layers[1].attention.scores"}
VALUES = {"layers[1].attention.values": "layers[1].attention.values"}
LOGITS = {"logits": "logits"}
POOLED = {"bert.pooler[out]": "classifier[in]"}
CASES = [
    *(
        (
            "bert",
            False,
            {"map": CROSSED, "distance": distance, "normalize": normalize, "projection": projection},
        )
        for distance in DISTANCES
        for normalize in (False, True)
        for projection in ("none", "shared", "each")
    ),
    *((family, False, {"map": STATES, "projection": "shared"}) for family in ("gpt2", "llama", "vit")),
    *((family, False, {"map": {**SCORES, **STATES}, "projection": "each"}) for family in families.NAMES),
    *((family, True, {"map": SCORES, "distance": "l1"}) for family in ("bert", "llama", "mistral")),
    *((family, False, {"map": VALUES, "normalize": True}) for family in ("bert", "llama", "vit")),
    *(
        (family, True, {"map": {**VALUES, **STATES}, "distance": "cosine", "projection": "each"})
        for family in ("bert", "gpt2")
    ),
    ("bert", False, {"map": {**POOLED, **LOGITS}, "distance": "l1", "projection": "each"}),
    ("bert", False, {"map": POOLED, "distance": "cosine", "projection": "shared"}),
    *((family, False, {"map": LOGITS}) for family in ("gpt2", "llama", "vit")),
]
NARROW = {"gpt2": "n_embd", "distilbert": "dim"}


@pytest.mark.parametrize(("family", "left", "options"), CASES)
def test_losses_of_models(family, left, options):
    options = {"distance": "mse", "normalize": False, "projection": "none", **options}
    projected = options["projection"] != "none"
    student = families.made(family)
    width = {NARROW.get(family, "hidden_size"): 24} if projected else {}
    teacher = families.made(family, initializer_range=0.2, **width)
    inputs = families.batch(family, left=left)
    session = bound.session(student, {"distill.hidden": {**options, "weight": 3.0}}, teacher=teacher)
    matrices = list(session.module.trained.parameters())
    for matrix in matrices:
        torch.nn.init.normal_(matrix, generator=torch.Generator().manual_seed(matrix.shape[1]))
    found = session.module(inputs)["hidden"]

    slow, slow_teacher = (copy.deepcopy(each).double() for each in (student, teacher))
    slow_matrices = [matrix.detach().double().requires_grad_() for matrix in matrices]
    wide = {name: each.double() if each.is_floating_point() else each for name, each in inputs.items()}
    mine, theirs = own(slow, wide, family), own(slow_teacher.requires_grad_(False), wide, family)
    seen = families.attended(family, inputs, mine["layers[0].output"].shape[1]).tolist()
    valid = [[token for token, row in enumerate(rows) if any(row)] for rows in seen]
    unused = iter(slow_matrices * len(options["map"]) if options["projection"] == "shared" else slow_matrices)
    values = []
    for one, other in options["map"].items():
        scores = one.endswith("scores")
        tensor = mine[one] @ next(unused).T if projected and not scores else mine[one]
        values.append(slow_pair(tensor, theirs[other], options, valid, seen if scores else None))
    expected = 3 * sum(values) / len(values)

    assert expected > 1e-3
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    found.backward()
    expected.backward()
    pairs = [
        *zip(student.parameters(), slow.parameters(), strict=True),
        *zip(matrices, slow_matrices, strict=True),
    ]
    for one, other in pairs:
        assert (one.grad is None) == (other.grad is None)
        if other.grad is not None:
            assert (one.grad - other.grad).abs().max() < 1e-4 * max(1.0, other.grad.abs().max())
    assert all(matrix.grad.abs().max() > 0 for matrix in matrices)
    assert all(each.grad is None for each in teacher.parameters())


ITEMS = [
    {"distill.hidden": {"map": {**STATES, **VALUES, **LOGITS}, "distance": "cosine"}},
    {"distill.hidden": {"map": {**STATES, **SCORES}, "distance": "l1"}},
]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_micro_batches_and_padding_change_nothing(family):
    student, inputs = tiny.model(family).eval(), tiny.batch(family, size=5)
    session = bound.session(student, *ITEMS, teacher=tiny.model(family, seed=1))
    same_in_parts_and_padded(session, inputs)


def test_gradients_add_up_over_micro_batches():
    gradients = []
    for rows in ([slice(5)], [slice(2), slice(2, 5)]):
        student = tiny.model().eval()
        item = {"map": STATES, "projection": "shared", "task_weight": 0}
        session = bound.session(student, {"distill.hidden": item}, teacher=tiny.model(width=24, seed=1))
        inputs = tiny.batch(size=5)
        for piece in rows:
            part = {name: each[piece] for name, each in inputs.items()}
            (len(part["labels"]) / 5 * session.module(part)["hidden"]).backward()
        gradients.append([each.grad for each in session.module.parameters() if each.grad is not None])
    assert len(gradients[0]) > 10
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("precision", ["half teacher", "half student", "autocast"])
def test_precisions(precision):
    item = {"distill.hidden": {"map": {**STATES, **SCORES}, "projection": "each"}}
    losses = []
    for rough in (False, True):
        student, teacher = families.made("bert"), families.made("bert", hidden_size=24)
        if rough and precision != "autocast":
            (teacher if "teacher" in precision else student).to(torch.bfloat16)
        session = bound.session(student, item, teacher=teacher)
        with torch.autocast("cpu", torch.bfloat16, enabled=rough and precision == "autocast"):
            loss = session.module(families.batch("bert"))["hidden"]
        assert loss.dtype == torch.float32
        loss.backward()
        assert all(torch.isfinite(each.grad).all() for each in session.module.trained.parameters())
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


# Projections


def test_projections_train_and_are_dropped(tmp_path):
    student = tiny.model()
    names = set(student.state_dict())
    item = {"map": STATES, "projection": "each", "end": "50%"}
    session = bound.session(student, {"distill.hidden": item}, teacher=tiny.model(width=24, seed=1))
    matrices = list(session.module.trained.parameters())
    assert [tuple(matrix.shape) for matrix in matrices] == [(24, 16), (24, 16)]
    optimized = {id(parameter) for parameter in session.module.parameters()}
    assert optimized >= {id(matrix) for matrix in matrices}
    start = [matrix.detach().clone() for matrix in matrices]
    told = bound.train(session, rate=0.05)
    assert all(not torch.equal(*pair) for pair in zip(matrices, start, strict=True))
    hidden = [float(terms["hidden"]) for terms in told if "hidden" in terms]
    assert len(hidden) == 5
    assert hidden[-1] < hidden[0]
    state = session.state_dict()["module"]
    again = bound.session(tiny.model(seed=3), {"distill.hidden": item}, teacher=tiny.model(width=24, seed=1))
    again.load_state_dict(session.state_dict())
    for one, other in zip(matrices, again.module.trained.parameters(), strict=True):
        assert torch.equal(one, other)
    assert sum(name.startswith("trained.") for name in state) == 2
    session.finish()
    student.save_pretrained(tmp_path)
    saved = type(student).from_pretrained(tmp_path)
    assert set(saved.state_dict()) == set(student.state_dict()) == names


# Errors


def refused(student, teacher, names, **options) -> CookError:
    [made] = bound.passes({"distill.hidden": {"map": names, **options}})
    with pytest.raises(CookError) as planned:
        made.plan(Anatomy(student, [Anatomy(teacher)]))
    with pytest.raises(CookError) as attached:
        bound.session(student, {"distill.hidden": {"map": names, **options}}, teacher=teacher)
    assert str(attached.value) == str(planned.value)
    return planned.value


ERRORS = {
    "nothing": (
        {"bert.poler[out]": "logits"},
        {},
        "in the student, 'bert.poler' matches no module",
        "'bert.pooler'",
    ),
    "several": (
        {"logits": "*.query[out]"},
        {},
        r"in the teacher, *.query[out] means 2 modules",
        "exactly one",
    ),
    "no tensor": (
        {"layers[0]": "logits"},
        {},
        "in the student, 'layers[0]' is no tensor",
        "layers[3].output",
    ),
    "widths": (
        STATES,
        {},
        "embeddings.output is 3 x 16, the teacher's embeddings.output is 3 x 24",
        "projection",
    ),
    "ranks": (
        {"layers[0].output": "logits"},
        {},
        "layers[0].output is 3 x 16, the teacher's logits is 2",
        None,
    ),
    "projected ranks": (
        {"layers[0].output": "layers[0].attention.values"},
        {"projection": "each"},
        "is 3 x 16, the teacher's layers[0].attention.values is 4 x 3 x 6",
        None,
    ),
    "heads": (
        {"layers[0].attention.scores": "layers[0].output", **STATES},
        {"projection": "each"},
        "attention.scores is 4 x 3 x 3, the teacher's layers[0].output is 3 x 24",
        None,
    ),
    "one matrix": (
        {"layers[0].output": "layers[0].output", "logits": "logits"},
        {"projection": "shared"},
        "one matrix cannot take these widths to each other",
        "each",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_of_the_plan(case):
    names, options, message, hint = ERRORS[case]
    error = refused(families.made("bert"), families.made("bert", hidden_size=24), names, **options)
    assert message in str(error)
    assert error.where.startswith("<dict>: passes[0]")
    assert (hint in error.hint) if hint else error.hint is None


@pytest.mark.parametrize("options", [{"distance": "cosine"}, {"normalize": True}])
def test_scores_have_no_directions(options):
    with pytest.raises(CookError, match=r"layers\[1\].attention.scores has no directions") as told:
        bound.passes({"distill.hidden": {"map": {**STATES, **SCORES}, **options}})
    assert told.value.where.endswith(next(iter(options)))
    assert "of their own" in told.value.hint


def test_attaching_leaves_no_trace():
    moving = {"quant.qat": {"observer": "moving"}}
    states = []
    for items in ([moving], [moving, {"distill.hidden": {"map": STATES}}]):
        session = bound.session(tiny.model(), *items, teacher=tiny.model(seed=1))
        states.append(session.module.state_dict())
    assert list(differences(*states)) == []
    model, teacher = tiny.model(), tiny.model(width=24)
    random = torch.get_rng_state()
    bound.session(model, {"distill.hidden": {"map": STATES, "projection": "each"}}, teacher=teacher)
    assert torch.equal(torch.get_rng_state(), random)


def test_scores_alone_have_nothing_to_project():
    with pytest.raises(CookError, match="nothing to project") as told:
        bound.passes({"distill.hidden": {"map": SCORES, "projection": "shared"}})
    assert told.value.where.endswith("projection")


def test_scores_are_never_projected():
    options = {"map": {**STATES, **SCORES}, "projection": "each"}
    session = bound.session(tiny.model(), {"distill.hidden": options}, teacher="self")
    assert [tuple(each.shape) for each in session.module.trained.parameters()] == [(16, 16), (16, 16)]
    assert torch.isfinite(session.module(tiny.batch())["hidden"])
