"""Tensors inside of models of every family, under sdpa, against eager twins and loops over the weights."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.tensors import Tensors
from cook.model.nn.hooks import Hooks
from tests.helpers import bound, families, tiny
from tests.helpers.families import CAUSAL, NAMES

every_family = pytest.mark.parametrize("family", NAMES)
FINAL = {"gpt2": "transformer.ln_f", **dict.fromkeys(CAUSAL[1:], "model.norm")}
"""What the last of the hidden states that transformers gives has gone through."""
RESIDUAL = ("vit", *CAUSAL)
ATTENTION = [
    f"layers[{layer}].attention.{part}" for layer in range(2) for part in ("queries", "keys", "values")
]
SCORES = [f"layers[{layer}].attention.scores" for layer in range(2)]
HIDDEN = ["embeddings.output", "layers[0].output", "layers[1].input", "layers[-1].output"]


def watching(model: nn.Module, *names: str) -> Tensors:
    tensors = Tensors(Anatomy(model), Hooks())
    for name in names:
        tensors.watch(name)
    tensors.open()
    return tensors


def recorded(model: nn.Module, inputs: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    tensors = watching(model, *names)
    with tensors.recording():
        model(**inputs)
    tensors.hooks.close()
    return {name: tensors[name] for name in names}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        scale = max(1.0, float(expected[name].detach().abs().max()))
        assert (value - expected[name]).abs().max() < 1e-5 * scale, name


def valid(tensors: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with nothing in padding, which each kind of attention fills with numbers of its own."""
    if (mask := inputs.get("attention_mask")) is None:
        return tensors
    shapes = {2: None, 3: (3, 6, 1), 4: (3, 1, 6, 1)}
    return {
        name: each if each.dim() == 2 else each.where(mask.reshape(shapes[each.dim()]).bool(), 0.0)
        for name, each in tensors.items()
    }


def weighed(tensors: dict[str, Tensor]) -> Tensor:
    """A scalar that no entry leaves without a gradient of its own."""
    generator = torch.Generator().manual_seed(5)
    terms = [(each * torch.randn(each.shape, generator=generator)).sum() for each in tensors.values()]
    return torch.stack(terms).sum()


# Values and gradients


@every_family
def test_hidden_states(family):
    model, twin, inputs = families.made(family), families.made(family, "eager"), families.batch(family)
    found = recorded(model, inputs, *HIDDEN, "logits")
    output = twin(**inputs, output_hidden_states=True)
    states = output.hidden_states
    assert len(states) == 3
    if family in FINAL:
        final = model.get_submodule(FINAL[family])
        found["layers[-1].output"] = final(found["layers[-1].output"])
    expected = dict(zip(found, [states[0], states[1], states[1], states[2], output.logits], strict=True))
    found, expected = valid(found, inputs), valid(expected, inputs)
    same(found, expected)
    same(gradients(model, weighed(found)), gradients(twin, weighed(expected)))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@every_family
def test_scores(family, left):
    model, twin = families.made(family), families.made(family, "eager")
    inputs = families.batch(family, left=left)
    found = recorded(model, inputs, *SCORES)
    attentions = twin(**inputs, output_attentions=True).attentions
    allowed = families.attended(family, inputs, attentions[0].shape[-1])
    rows = allowed.any(-1)[:, None, :, None]
    mine = {
        name: scores.masked_fill(~allowed[:, None], -1e9).softmax(-1).where(rows, 0.0)
        for name, scores in found.items()
    }
    theirs = {name: each.where(rows, 0.0) for name, each in zip(SCORES, attentions, strict=True)}
    assert max(each.max() - 1 / each.shape[-1] for each in theirs.values()) > 0.1, "attention is not even"
    same(mine, theirs)
    same(gradients(model, weighed(mine)), gradients(twin, weighed(theirs)))


@every_family
def test_queries_keys_and_values(family):
    model, twin, inputs = families.made(family), families.made(family, "eager"), families.batch(family)
    found = recorded(model, inputs, *ATTENTION)
    states = twin(**inputs, output_hidden_states=True).hidden_states
    slow = [*families.factors(twin, 0, states[0]), *families.factors(twin, 1, states[1])]
    expected = dict(zip(ATTENTION, slow, strict=True))
    heads = {name: each.shape[1] for name, each in found.items()}
    grouped = 2 if family in CAUSAL[1:] else 4
    assert heads == {name: 4 if name.endswith("queries") else grouped for name in ATTENTION}
    found, expected = valid(found, inputs), valid(expected, inputs)
    same(found, expected)
    same(gradients(model, weighed(found)), gradients(twin, weighed(expected)))


@every_family
def test_parts_of_a_layer(family):
    model, inputs = families.made(family), families.batch(family)
    layer = Anatomy(model).layers[0]
    names = ("input", "attention.output", "ffn.output", "output")
    found = recorded(model, inputs, *(f"layers[0].{name}" for name in names))
    states, attention, ffn, output = found.values()
    if family in RESIDUAL:
        torch.testing.assert_close(states + attention + ffn, output)
    elif family == "distilbert":
        first, second = (
            model.get_submodule(f"{layer}.{name}") for name in ("sa_layer_norm", "output_layer_norm")
        )
        middle = first(states + attention)
        torch.testing.assert_close(model.get_submodule(f"{layer}.ffn")(middle), ffn)
        torch.testing.assert_close(second(middle + ffn), output)
    else:
        assert torch.equal(ffn, output)
        middle = model.get_submodule(f"{layer}.intermediate")(attention)
        torch.testing.assert_close(model.get_submodule(f"{layer}.output")(middle, attention), output)


@every_family
def test_module_paths(family):
    model, inputs = families.made(family), families.batch(family)
    layer = Anatomy(model).layers[1]
    given = [f"{layer}[in]", f"{layer}[out]", "layers[1][out]", f"*{layer[-6:]}[in]"]
    first, second, third, fourth = recorded(model, inputs, *given).values()
    expected = recorded(model, inputs, "layers[1].input", "layers[1].output")
    assert torch.equal(first, expected["layers[1].input"])
    assert torch.equal(fourth, first)
    assert torch.equal(second, expected["layers[1].output"])
    assert torch.equal(third, second)


def test_scores_are_scaled_as_gpt2_is_told_to():
    options = {"scale_attn_by_inverse_layer_idx": True}
    model, twin = families.made("gpt2", **options), families.made("gpt2", "eager", **options)
    inputs = families.batch("gpt2")
    found = recorded(model, inputs, "layers[1].attention.scores")["layers[1].attention.scores"]
    allowed = families.attended("gpt2", inputs, 6)
    expected = twin(**inputs, output_attentions=True).attentions[1]
    torch.testing.assert_close(found.masked_fill(~allowed[:, None], -1e9).softmax(-1)[0], expected[0])


# Precision, recomputation, processes


@every_family
def test_autocast(family):
    model, inputs = families.made(family), families.batch(family)
    exact = recorded(model, inputs, *HIDDEN, *ATTENTION, *SCORES)
    with torch.autocast("cpu", torch.bfloat16):
        found = recorded(model, inputs, *HIDDEN, *ATTENTION, *SCORES)
        loss = weighed({name: each.float() for name, each in found.items()})
    for name, value in found.items():
        assert (value - exact[name]).norm() < 0.05 * exact[name].norm(), name
    for layer, name in enumerate(SCORES):
        assert found[name].dtype == torch.float32
        queries, keys = (found[each].float() for each in ATTENTION[3 * layer : 3 * layer + 2])
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        torch.testing.assert_close(found[name], queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5)
    rough, fine = gradients(model, loss), gradients(model, weighed(exact))
    assert rough.keys() == fine.keys()
    for name, value in rough.items():
        assert value.dtype == torch.float32
        assert (value - fine[name]).norm() <= 0.1 * max(fine[name].norm(), 1.0), name


def recomputing(model: nn.Module, **options: bool) -> nn.Module:
    model.activation_checkpointing_enable(options)
    return model.train()


@every_family
def test_recomputed_layers(family):
    inputs, seen, kept = families.batch(family), [], []
    for model in (families.made(family).train(), recomputing(families.made(family), use_reentrant=False)):
        tensors = watching(model, *HIDDEN, *ATTENTION, *SCORES)
        fired = []
        query = model.get_submodule(tensors.anatomy.projections(tensors.anatomy.layers[0])[0])
        query.register_forward_hook(lambda *_, fired=fired: fired.append(1))
        torch.manual_seed(1)  # dropout is on
        with tensors.recording():
            loss = model(**inputs, use_cache=False).loss if family in CAUSAL else model(**inputs).loss
        found = {name: tensors[name] for name in (*HIDDEN, *ATTENTION, *SCORES)}
        before = {name: each.detach().clone() for name, each in found.items()}
        kept.append((before, gradients(model, loss + weighed(found)), len(fired)))
        seen.append(all(tensors[name] is each for name, each in found.items()))
    (values, grads, once), (again, grads_again, twice) = kept
    assert (once, twice) == (1, 2)
    assert seen == [True, True]
    assert values.keys() == again.keys()
    assert all(torch.equal(values[name], again[name]) for name in values)
    assert grads.keys() == grads_again.keys()
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)


@pytest.mark.parametrize("options", [{"use_reentrant": True}, {"preserve_rng_state": True}])
def test_reentrant_recomputation_is_refused(options):
    with pytest.raises(CookError, match="reentrant") as told:
        watching(recomputing(families.made("bert"), **options), "layers[0].output")
    assert "use_reentrant" in told.value.hint


def test_reentrant_recomputation_is_refused_when_it_comes_later():
    model, inputs = families.made("bert"), families.batch("bert")
    tensors = watching(model, "layers[0].attention.values")
    with tensors.recording():
        model(**inputs)
    recomputing(model, use_reentrant=True)
    with pytest.raises(CookError, match="reentrant"), tensors.recording():
        pytest.fail("the forward was not to begin")
    model.activation_checkpointing_disable()
    with tensors.recording():
        model(**inputs)
    assert tensors["layers[0].attention.values"].shape == (3, 4, 6, 4)


def test_what_does_not_learn_may_recompute_as_it_likes():
    teacher = recomputing(families.made("bert"), use_reentrant=True)
    item = {"distill.hidden": {"map": {"layers[0].output": "layers[0].output"}}}
    session = bound.session(families.made("bert"), item, teacher=teacher)
    assert torch.isfinite(session.module(families.batch("bert"))["hidden"])
    # And nothing is watched here.
    recomputing(model := families.made("bert"), use_reentrant=True)
    bound.session(model, "distill.logits", teacher="self").module(families.batch("bert"))


def test_a_layer_that_a_later_pass_replaces():
    model, inputs = families.made("bert"), families.batch("bert")
    name = "layers[1].attention.scores"
    session = bound.session(
        model, {"distill.hidden": {"map": {name: name}}}, {"quant.qat": {"weights": "int4"}}, teacher="self"
    )
    session.before_step(0)
    terms = session.module(inputs)
    found, theirs = session.tensor(name), session.teachers[0].tensor(name)
    model.set_attn_implementation("eager")
    expected = model(**inputs, output_attentions=True).attentions[1]
    hidden = ~families.attended("bert", inputs, 6)[:, None]
    torch.testing.assert_close(found.masked_fill(hidden, -1e9).softmax(-1)[0], expected[0])
    assert (found - theirs).abs().max() > 1e-2, "the student is rounded, its teacher is not"
    terms["hidden"].backward()
    query = model.get_submodule("bert.encoder.layer.1.attention.self.query")
    assert type(query).__name__ == "TransformedLinear"
    assert query.weight.grad.abs().max() > 0


# Names


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("layers[0].outptu", "has no tensor 'outptu'", "did you mean 'output'"),
        ("layers[0].zzz", "has no tensor 'zzz'", "attention.scores, ffn.output"),
        ("layers[2].output", r"has 2 layers, 0 to 1", None),
        ("layers[-3].attention.scores", r"has 2 layers, 0 to 1", None),
        ("layers[0:2].output", "is no tensor of a model", "write layers"),
        ("layers[0]", "is no tensor of a model", "write layers"),
        ("bert.pooler", "is no tensor of a model", r"PATH\[in\]"),
        ("bert.poler[out]", "matches no module", "did you mean 'bert.pooler'"),
        ("*.query[out]", r"\*.query\[out\] means 2 modules \(bert.encoder.layer.0", "exactly one"),
        ("ffn[out]", "means 4 modules", "exactly one"),
    ],
)
def test_names_that_mean_nothing_or_several(name, message, hint):
    with pytest.raises(CookError, match=message) as told:
        watching(families.made("bert"), name)
    assert hint is None or hint.replace("\\", "") in told.value.hint


def test_models_of_unknown_families_have_module_paths_only():
    class Config:
        model_type = "tower"

    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model.config = Config()
    tensors = watching(model, "0[in]", "1[out]")
    given = torch.randn(2, 2)
    with tensors.recording():
        output = model(given)
    assert tensors["0[in]"] is given
    assert tensors["1[out]"] is output
    with pytest.raises(CookError, match="does not know where"):
        tensors.watch("layers[0].output")


def test_a_module_that_runs_twice():
    model, inputs = families.made("bert"), families.batch("bert")
    layers = model.bert.encoder.layer
    layers[1].intermediate = layers[0].intermediate
    tensors = watching(model, "*.0.intermediate[out]")
    with pytest.raises(CookError, match=r"0.intermediate runs several times") as told, tensors.recording():
        model(**inputs)
    assert "runs once" in told.value.hint
    model(**inputs)


def test_a_module_that_does_not_run_or_has_no_tensor():
    class Odd(nn.Module):
        def forward(self, value):
            return {"number": 1}

    model = nn.Sequential(nn.Linear(2, 2), Odd())
    model.idle = nn.Linear(1, 1)
    model.forward = lambda value: model[1](model[0](value))
    tensors = watching(model, "idle[out]")
    with tensors.recording():
        model(torch.ones(1, 2))
    with pytest.raises(CookError, match=r"idle\[out\]: idle was not run"):
        tensors["idle[out]"]
    tensors = watching(model, "1[out]")
    with pytest.raises(CookError, match="1 neither gets nor gives a tensor"), tensors.recording():
        model(torch.ones(1, 2))


def test_a_model_without_a_head_has_no_logits():
    model = families.made("bert").bert
    tensors = watching(model, "logits")
    inputs = {name: each for name, each in families.batch("bert").items() if name != "labels"}
    with pytest.raises(CookError, match="gives no logits"), tensors.recording():
        model(**inputs)


# What is kept


def test_a_recording_takes_the_place_of_the_last_and_nothing_else_is_kept():
    model = families.made("bert")
    tensors = watching(model, "layers[0].output", "layers[0].attention.scores")
    with tensors.recording():
        model(**families.batch("bert"))
    first = tensors["layers[0].output"]
    model(**families.batch("bert", seed=1))
    assert tensors["layers[0].output"] is first
    with tensors.recording():
        model(**families.batch("bert", seed=2))
    assert not torch.equal(tensors["layers[0].output"], first)
    tensors.clear()
    with pytest.raises(CookError, match="was not run"):
        tensors["layers[0].output"]


ITEMS = (
    {"distill.hidden": {"map": {"layers[0].output": "layers[0].output"}, "projection": "each"}},
    "distill.minilm",
)


def alive(references: list[weakref.ref]) -> int:
    return sum(each() is not None for each in references)


def test_tensors_are_let_go():
    family, references = "llama", []
    model = tiny.model(family)
    session = bound.session(model, *ITEMS, teacher=tiny.model(family, seed=1))
    for who in (model, session.teachers[0].model):
        for layer in Anatomy(who).layers:
            who.get_submodule(layer).register_forward_hook(
                lambda *args: references.append(weakref.ref(_first(args[2])))
            )
    optimizer = torch.optim.SGD(session.module.parameters(), lr=0.1)

    def step() -> None:
        session.before_step(0)
        terms = session.module(tiny.batch(family))
        sum(terms.values()).backward()
        assert alive(references) >= 2, "what is compared is there as long as the losses may be asked again"
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()

    step()
    with torch.no_grad():
        model.eval()(**tiny.batch(family))
    gc.collect()
    assert len(references) == 6
    assert alive(references) == 0, "neither the step's nor the evaluation's"
    assert not session._tensors._kept
    assert not session.teachers[0]._tensors._kept
    session.module(tiny.batch(family))
    session.finish()
    gc.collect()
    assert alive(references) == 0
    # The teacher's do not wait for the student's next forward to end.
    session = bound.session(model, *ITEMS, teacher="self")
    session.module(tiny.batch(family))
    session.teachers[0].set_batch(tiny.batch(family))
    assert not session.teachers[0]._tensors._kept


def _first(output):
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("family", ["gemma", "opt"])
def test_scores_of_further_families_are_those_of_eager_attention(family):
    model, batch = families.made(family, "eager"), families.batch(family)
    tensors = watching(model, "layers[1].attention.scores")
    with torch.no_grad(), tensors.recording():
        attentions = model(**batch, output_attentions=True).attentions[1]
    found = tensors["layers[1].attention.scores"]
    allowed = torch.ones(6, 6, dtype=torch.bool).tril() & batch["attention_mask"].bool()[:, None, None]
    weights = found.masked_fill(~allowed, -torch.inf).softmax(-1)
    rows = batch["attention_mask"].bool()[:, None, :, None].expand_as(weights)
    assert torch.allclose(weights[rows], attentions[rows], atol=1e-5)


@pytest.mark.parametrize("family", ["albert", "bart", "deberta-v2", "gpt_neox", "phi3", "qwen3", "t5"])
def test_what_cannot_be_told_apart_is_refused(family):
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    for part in ("queries", "scores"):
        with pytest.raises(CookError, match=f"projections of a {family} model") as told:
            watching(model, f"layers[0].attention.{part}")
        assert "layers[0].output" in told.value.hint
    watching(model, "layers[0].output")
