"""The pass: what it factorises, to which ranks, and what happens to the factors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    BertForMultipleChoice,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)

import cook
from cook.data.calibration import given
from cook.errors import CookError
from cook.lowrank import factors
from cook.lowrank.fisher import row_information
from cook.lowrank.ranks import worthwhile
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.targets import select
from cook.model.nn.integer import IntLinear
from cook.model.nn.linear import matrix, shape
from cook.model.nn.lowrank import Apart, LowRank
from cook.model.probe.measure import macs, tally
from cook.session import Session
from tests.helpers import bound, families, tiny
from tests.helpers.traces import hooks
from tests.model.calibration.test_layerwise import seq2seq, slow_gram, slow_gram_of_pairs


def batches(family: str = "bert", size: int = 20) -> list[dict[str, Tensor]]:
    return [tiny.batch(family, size=size, seed=seed) for seed in range(2)]


def session(model: Any, family: str = "bert", examples: Any = None, steps: int = 0, **options: Any) -> Any:
    found = batches(family) if examples is None else examples
    return bound.session(model, {"lowrank.linear": options}, steps=steps, calibration=given(found))


def product(module: Any) -> Tensor:
    return (module.up.weight @ module.down.weight).detach()


def facts(bound_session: Any) -> dict[str, Any]:
    bound_session.finish()
    return bound_session.facts["lowrank.linear"]


@torch.no_grad()
def slowly(
    model: Any, names: list[str], rank: int, examples: list[dict[str, Tensor]], gram: Any = slow_gram
) -> None:
    """Every layer with hooks on a whole forward of the model, whose earlier layers are low rank already."""
    for layer in Anatomy(model).layers:
        inside = [name for name in names if name.startswith(f"{layer}.")]
        grams = {name: gram(model, name, examples)[0] for name in inside}
        for name in inside:
            weight = matrix(model.get_submodule(name))
            left, values, right = torch.linalg.svd(weight.double() @ _root(grams[name]))
            kept = (left[:, :rank] * values[:rank]) @ right[:rank] @ torch.linalg.pinv(_root(grams[name]))
            weight.copy_(kept.to(weight.dtype))


def _root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * values.clamp_min(1e-12).sqrt()) @ vectors.t()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_data_is_the_model_taken_through_by_hand(family):
    model = tiny.model(family).train()
    hand = copy.deepcopy(model)
    done = session(model, family, rank=2, dtype="float64")
    names = select(Anatomy(hand), None)
    slowly(hand, names, 2, batches(family))
    for name in names:
        module, expected = model.get_submodule(name), matrix(hand.get_submodule(name)).detach()
        assert isinstance(module, LowRank)
        torch.testing.assert_close(
            product(module), expected, rtol=0, atol=2e-4 * float(expected.abs().max()) + 1e-6
        )
    torch.testing.assert_close(bound.logits(model, family), bound.logits(hand, family), rtol=0, atol=1e-4)
    assert model.get_submodule(names[0]).training is False or model.training is False
    assert hooks(model) == {}
    told = facts(done)
    assert told["ranks"] == dict.fromkeys(names, 2)
    assert (told["method"], told["whole"]) == ("data", [])
    assert 0 < told["error"]["mean"] <= told["error"]["worst"] < 1
    assert told["energy"] == pytest.approx(1 - sum(done.passes[0].lost.values()) / len(names))


@pytest.mark.parametrize("family", families.ENCODER_DECODER)
def test_an_encoder_and_its_decoder_are_taken_through_by_hand(family):
    model = AutoModelForSeq2SeqLM.from_config(families.made(family).config).eval()
    hand, examples = copy.deepcopy(model), [each for seed in range(4) for each in seq2seq(family, seed=seed)]
    done = session(model, examples=examples, rank=2, dtype="float64")
    names = select(Anatomy(hand), None)
    slowly(hand, names, 2, examples, slow_gram_of_pairs)
    for name in names:
        expected = matrix(hand.get_submodule(name)).detach()
        torch.testing.assert_close(
            product(model.get_submodule(name)),
            expected,
            rtol=0,
            atol=2e-4 * float(expected.abs().max()) + 1e-6,
        )
    assert facts(done)["tokens"] == max(slow_gram_of_pairs(hand, name, examples)[1] for name in names)


def test_the_error_that_is_told_is_that_of_the_layers_outputs():
    model = tiny.model()
    whole = copy.deepcopy(model)
    name = "bert.encoder.layer.0.intermediate.dense"
    told = facts(session(model, include=[name], rank=3))
    gram, tokens = slow_gram(whole, name, batches())
    weight = whole.get_submodule(name).weight.detach().double()
    missing = weight - product(model.get_submodule(name)).double()
    error = ((missing @ gram * missing).sum() / (weight @ gram * weight).sum()).sqrt()
    assert told["error"] == {
        "mean": pytest.approx(float(error), rel=1e-3),
        "worst": pytest.approx(float(error), rel=1e-3),
        "worst_of": name,
    }
    assert told["tokens"] == tokens


def test_albert_sums_over_all_uses_of_its_layer():
    model, examples = families.made("albert"), [families.batch("albert", seed=seed) for seed in range(4)]
    hand = copy.deepcopy(model)
    session(model, examples=examples, rank=3, dtype="float64")
    names = select(Anatomy(hand), None)
    for name in names:
        total = 0.0
        for batch in examples:
            kept: list[Tensor] = []
            handle = hand.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, kept=kept: kept.append(inputs[0])
            )
            with torch.no_grad():
                hand(**batch)
            handle.remove()
            assert len(kept) == 2
            for each in kept:
                flat = each[batch["attention_mask"].bool()].double()
                total = total + flat.t() @ flat
        weight = hand.get_submodule(name).weight.detach()
        up, down = factors.data(weight, total).factors(3)
        torch.testing.assert_close(product(model.get_submodule(name)).double(), up @ down, rtol=0, atol=1e-3)


def test_svd_and_fisher_are_those_of_the_model_as_it_was():
    for method in ("svd", "fisher"):
        model = tiny.model()
        whole = copy.deepcopy(model)
        session(model, method=method, rank=3)
        names = select(Anatomy(whole), None)
        information = row_information(whole, batches(), names)
        for name in names:
            weight = whole.get_submodule(name).weight.detach()
            expected = factors.svd(weight) if method == "svd" else factors.fisher(weight, information[name])
            up, down = expected.factors(3)
            torch.testing.assert_close(
                product(model.get_submodule(name)), (up @ down).float(), rtol=0, atol=1e-6
            )


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_fused_products_apart_are_factorised_one_by_one(family):
    model = families.made(family)
    whole = copy.deepcopy(model)
    done = session(model, method="svd", rank=3, fused="apart")
    apart = {name: each for name, each in model.named_modules() if isinstance(each, Apart)}
    assert len(apart) == (4 if family == "phi3" else 2)
    for name, module in apart.items():
        weight = matrix(whole.get_submodule(name)).detach()
        parts = [product(part) for part in module]
        if family == "gpt_neox":  # queries, keys and values of one head after the other
            rows = [weight.view(-1, 3, 4, 16)[:, index].flatten(0, 1) for index in range(3)]
        elif len(parts) == 3:
            rows = list(weight.split([16, 8, 8] if family == "phi3" else [16, 16, 16]))
        else:
            rows = list(weight.chunk(2))
        for part, own in zip(parts, rows, strict=True):
            up, down = factors.svd(own).factors(3)
            torch.testing.assert_close(part, (up @ down).float(), rtol=0, atol=1e-5)
    ranks = facts(done)["ranks"]
    assert f"{next(iter(apart))}.2" in ranks or family == "phi3"


def test_both_factors_get_the_gradient_of_the_product():
    model = tiny.model().train()
    bound_session = session(model, rank=3, steps=4)
    name = "bert.encoder.layer.0.output.dense"
    module = model.get_submodule(name)
    whole = copy.deepcopy(model)
    plain = nn.Linear(32, 16)
    plain.weight, plain.bias = (
        nn.Parameter(product(module).clone()),
        nn.Parameter(module.bias.detach().clone()),
    )
    whole.get_submodule("bert.encoder.layer.0.output").dense = plain
    for each in (model, whole):
        each.eval()(**tiny.batch()).loss.backward()
    slope = plain.weight.grad
    torch.testing.assert_close(module.up.weight.grad, slope @ module.down.weight.t(), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(module.down.weight.grad, module.up.weight.t() @ slope, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(module.up.bias.grad, plain.bias.grad)
    model.zero_grad()
    before = product(module)
    bound.train(bound_session)
    assert not torch.equal(product(module), before)


def test_a_budget_is_kept_and_spread():
    for budget in ({"parameters": 0.8}, {"macs": 0.7}):
        model, batch = tiny.model(), batches()[0]
        inputs = {name: value[:1] for name, value in batch.items() if name != "labels"}
        before = tally(model).parameters, macs(model, inputs)
        told = facts(session(model, budget=budget))
        after = tally(model).parameters, macs(model, inputs)
        number = 0 if "parameters" in budget else 1
        asked = next(iter(budget.values()))
        assert asked - 0.02 < after[number] / before[number] <= asked
        assert len({*told["ranks"].values()}) > 1


@torch.no_grad()
def test_spreading_gives_to_what_moves_the_model():
    """An FFN whose outputs hardly count is as hard to keep as any other, and gets the least."""
    examples = [families.batch("bert", seed=seed) for seed in range(6)]
    idle, moved = "bert.encoder.layer.0.output.dense", {}
    for spread in (False, True):
        model = families.made("bert")
        for parameter in model.get_submodule(idle).parameters():
            parameter.mul_(1e-3)
        before = torch.cat([model(**each).logits for each in examples])
        told = facts(session(model, examples=examples, parameters=0.5, spread=spread))
        assert told["share"] <= 0.5
        moved[spread] = float((torch.cat([model(**each).logits for each in examples]) - before).norm())
        if spread:
            assert told["ranks"][idle] == 1
    assert moved[True] < moved[False]


def test_a_run_that_goes_on_keeps_the_ranks_it_began_with():
    """Another machine could choose others, which would not fit what is in the checkpoint."""
    whole = session(tiny.model()).passes[0]
    other = [1 if rank is None else rank + 1 for rank in whole.ranks]
    state = {"lowrank.linear": {"ranks": other}}
    passes = bound.passes({"lowrank.linear": {}})
    model = tiny.model()
    Session(passes, model, total_steps=0, calibration=given(batches()), recalled=state)
    assert passes[0].ranks == other
    assert model.get_submodule(passes[0].targets[0].name).rank == other[0]
    passes[0].load_state_dict(state["lowrank.linear"])
    with pytest.raises(CookError, match="other ranks than before"):
        whole.load_state_dict(state["lowrank.linear"])


@pytest.mark.parametrize("method", ["svd", "fisher"])
def test_weights_are_spread_by_the_share_of_their_energy(method):
    errors = {}
    for spread in (False, True):
        model = families.made("bert")
        examples = [families.batch("bert", seed=seed) for seed in range(6)]
        done = session(model, examples=examples, parameters=0.5, spread=spread, method=method)
        errors[spread] = sum(done.passes[0].lost.values())
    assert errors[True] < errors[False]


def test_energy_is_kept_on_every_target():
    done = session(tiny.model(), energy=0.8, dtype="float64", include=["ffn"])
    # Later layers see what the changed ones give, so that theirs is only about what was asked.
    first = [lost for name, lost in done.passes[0].lost.items() if ".layer.0.intermediate" in name]
    assert first
    assert all(lost <= 0.2 for lost in first)
    assert facts(done)["energy"] > 0.75


def test_what_saves_nothing_stays_whole_and_is_told():
    model = tiny.model("llama")
    done = session(model, "llama", rank=7)  # keys and values are 8 x 16
    told = facts(done)
    assert sorted(told["whole"]) == [
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "kv"
    ]
    assert isinstance(model.get_submodule(told["whole"][0]), nn.Linear)
    assert told["left"] == sum(
        128 if name in told["whole"] else 7 * sum(shape(model.get_submodule(name)))
        for name in [*told["ranks"], *told["whole"]]
    )
    (planned,) = bound.passes({"lowrank.linear": {"rank": 7}})
    with torch.device("meta"):
        effect = planned.plan(Anatomy(tiny.model("llama")))
    assert "k_proj and 3 more would save nothing" in effect.note


def test_patterns_give_ranks_and_the_first_counts():
    model = tiny.model()
    told = facts(session(model, ranks={"layers[1].attention": 2, "*.query": 3, "re:.*layer.0.*key": 1}))
    at = "bert.encoder.layer.{}.attention.{}"
    assert told["ranks"] == {
        at.format(0, "self.query"): 3,
        at.format(0, "self.key"): 1,
        at.format(1, "self.query"): 2,
        at.format(1, "self.key"): 2,
        at.format(1, "self.value"): 2,
        at.format(1, "output.dense"): 2,
    }


def test_layers_outside_are_looked_at_in_whole_forwards():
    model = tiny.model()
    whole = copy.deepcopy(model)
    examples = batches(size=24)
    names = ["bert.pooler.dense"]
    told = facts(session(model, examples=examples, include=names, rank=4))
    assert (list(told["ranks"]), told["tokens"]) == (names, 48)
    kept: list[Tensor] = []
    whole.get_submodule(names[0]).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        for batch in examples:
            whole.eval()(**batch)
    inputs = torch.cat(kept).double()
    up, down = factors.data(
        whole.get_parameter(f"{names[0]}.weight").detach(), (inputs.t() @ inputs).float()
    ).factors(4)
    torch.testing.assert_close(product(model.get_submodule(names[0])).double(), up @ down, rtol=0, atol=1e-3)


def test_further_passes_act_on_the_factors(tmp_path):
    model = tiny.model()
    recipe = {
        "version": 1,
        "passes": [
            {"prune.heads": {"sparsity": 0.25, "importance": "magnitude"}},
            {"lowrank.linear": {"method": "svd", "rank": 4}},
            {"prune.weights": {"sparsity": 0.5, "scope": "layer", "include": ["*.up"]}},
            "quant.qat",
        ],
    }
    result = cook.apply(model, recipe)
    up = model.get_submodule("bert.encoder.layer.0.attention.self.query.up")
    assert isinstance(up, IntLinear)
    assert shape(up) == (12, 4)
    assert 0.4 < float((matrix(up) == 0).float().mean()) < 0.7
    assert result.report.passes[1].facts["ranks"]["bert.encoder.layer.0.attention.self.query"] == 4
    model.save_pretrained(tmp_path)
    back = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(bound.logits(back), bound.logits(model), rtol=0, atol=1e-4)


def test_what_is_low_rank_already_is_left_and_what_is_whole_is_not():
    model = tiny.model()
    session(model, method="svd", rank=4, include=["ffn"]).finish()
    told = facts(session(model, method="svd", rank=3))
    assert all("attention" in name for name in told["ranks"])
    assert len(told["ranks"]) == 8
    with pytest.raises(CookError, match="all 24 linear layers that are selected are factors"):
        session(model, method="svd", rank=2)


def test_a_resumed_pass_has_the_ranks_of_before():
    one, other = (session(tiny.model(), energy=0.8, steps=4) for _ in range(2))
    other.load_state_dict(one.state_dict())
    state = {"ranks": [1] * 12}
    with pytest.raises(CookError, match="other ranks than before"):
        other.passes[0].load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "words", "place"),
    [
        ({"rank": 17}, "above the full rank 16 of bert.encoder.layer.0.attention.self.query", "rank"),
        ({"rank": 12}, "saves nothing", "rank"),
        ({"ranks": {"ffn": 17}}, "above the full rank", "ranks"),
        ({"ranks": {"*.quarry": 2}}, "matches no module", "ranks"),
        ({"ranks": {"classifier": 1}}, "matches no target", "ranks"),
        ({"parameters": 0.05}, "rank of zero", "parameters"),
        ({"parameters": 0.5, "multiple": 16}, "rank of zero", "parameters"),
        ({"budget": {"parameters": 0.2}}, "cannot be met", "budget"),
        ({"budget": {"macs": 0.02}}, "cannot be met", "budget"),
        ({"rank": 3, "energy": 0.5}, "all say ranks", "energy"),
        ({"rank": 3, "spread": True}, "means nothing with rank", "spread"),
        ({"rank": 3, "multiple": 8}, "means nothing with rank", "multiple"),
        ({"method": "svd", "dtype": "float64"}, "means nothing with svd", "dtype"),
        ({"budget": {"parameters": 0.5, "macs": 0.5}}, "either parameters or macs", "budget"),
        ({"rows": 1}, "calibration tokens for the 16 inputs", "rows"),
        ({"energy": 0.9999}, "all targets would stay whole", None),
    ],
)
def test_bad_input_is_told_with_its_place(options, words, place):
    model = tiny.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CookError, match=words) as caught:
        session(model, examples=batches(size=24), **options)
    assert (caught.value.where or "").endswith(f"passes[0].{place}" if place else "passes[0]")
    assert caught.value.hint
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks(model) == {}


@pytest.mark.parametrize("rank", [0, -1, 2.5, "many"])
def test_ranks_that_are_none_are_refused_by_the_schema(rank):
    with pytest.raises(CookError, match="rank"):
        bound.passes({"lowrank.linear": {"rank": rank}})


def test_the_nearest_that_can_be_can_be():
    with pytest.raises(CookError) as caught:
        session(tiny.model(), parameters=0.05)
    nearest = float((caught.value.hint or "").split()[-1])
    assert set(facts(session(tiny.model(), parameters=nearest))["ranks"].values()) == {1}
    with pytest.raises(CookError) as caught:
        session(tiny.model(), budget={"parameters": 0.2})
    nearest = float((caught.value.hint or "").split()[2].rstrip(","))
    assert facts(session(tiny.model(), budget={"parameters": nearest}))["ranks"]


def test_what_cannot_be_calibrated_says_so():
    unlabelled = [{name: value for name, value in each.items() if name != "labels"} for each in batches()]
    with pytest.raises(CookError, match="have no labels"):
        session(tiny.model(), examples=unlabelled, method="fisher")
    torch.manual_seed(0)
    tied = LlamaForCausalLM(copy.deepcopy(tiny.model("llama").config))
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.lm_head.weight = tied.model.embed_tokens.weight
    with pytest.raises(CookError, match=r"is that of model\.embed_tokens too"):
        session(tied, "llama", include=["lm_head"], method="svd")


def test_every_layer_can_be_low_rank_at_its_largest_rank():
    """Where all ranks are the largest that pay, outputs move little; at the full one not at all (factors)."""
    model = families.made("bert")
    examples = [families.batch("bert", seed=seed) for seed in range(8)]
    before = model(**examples[0]).logits.detach()
    told = facts(session(model, examples=examples, parameters=0.99, spread=False))
    assert all(
        rank == worthwhile(*shape(model.get_submodule(name))) or rank > 6
        for name, rank in told["ranks"].items()
    )
    assert float((model(**examples[0]).logits.detach() - before).abs().max()) < float(before.abs().max())


@pytest.mark.parametrize("family", ["gpt2", "t5", "bert"])
def test_factors_in_integers_come_back(family, tmp_path):
    # GPT-2 and T5 draw the weights of what they do not find in a folder by the names of their layers.
    model = families.made(family)
    model = cook.apply(
        model, {"version": 1, "passes": [{"lowrank.linear": {"method": "svd"}}, "quant.qat"]}
    ).model
    model.save_pretrained(tmp_path)
    back = type(model).from_pretrained(tmp_path).eval()
    batch = families.batch(family)
    with torch.no_grad():
        assert torch.equal(back(**batch).logits, model(**batch).logits)


def test_what_a_model_does_not_run_has_no_budget():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=23, add_cross_attention=True)
    with pytest.raises(CookError, match=r"crossattention.c_attn is not run by the model") as caught:
        session(
            GPT2LMHeadModel(config),
            examples=[{"input_ids": torch.arange(12)[None]}],
            method="svd",
            budget={"macs": 0.8},
        )
    assert "exclude" in str(caught.value.hint)


def test_weights_that_are_no_numbers_have_no_factors():
    model = tiny.model()
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.query.weight[0, 0] = torch.nan
    with pytest.raises(CookError, match=r"layer.1.attention.self.query: some of its weights are no finite"):
        session(model, method="svd")


def test_choices_are_all_their_examples_own():
    model = BertForMultipleChoice(families.made("bert").config).eval()
    draw = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(5, 23, (3, 4, 6), generator=draw),
        "labels": torch.randint(0, 4, (3,), generator=draw),
    }
    name = "bert.encoder.layer.0.output.dense"
    expected = torch.zeros(16)
    for row in range(3):
        model(**{key: value[row : row + 1] for key, value in batch.items()}).loss.backward()
        weight = model.get_submodule(name).weight
        expected += weight.grad.square().sum(1) / 3
        weight.grad = None
    torch.testing.assert_close(row_information(model, [batch], [name])[name], expected)


@pytest.mark.parametrize(
    ("options", "examples"),
    [({"multiple": 64, "method": "svd"}, None), ({"method": "fisher"}, []), ({"multiple": 64}, None)],
)
def test_hints_are_no_shares_that_are_refused(options, examples):
    with pytest.raises(CookError, match=r"rank of zero|no calibration examples") as caught:
        session(tiny.model(), examples=examples, **options)
    assert "the nearest that can be" not in str(caught.value.hint)


def test_ranks_that_are_found_are_not_shared():
    both = [{"lowrank.linear": {}}, {"share.layers": {"groups": "all"}}]
    model = tiny.model()
    with pytest.raises(CookError, match="finds the rank of each matrix by itself") as caught:
        cook.apply(model, {"version": 1, "passes": both}, calibration=batches())
    assert "spread: false" in str(caught.value.hint)
    assert not any(isinstance(module, LowRank) for module in model.modules())
    both[0] = {"lowrank.linear": {"spread": False}}
    cook.apply(model, {"version": 1, "passes": both}, calibration=batches())
