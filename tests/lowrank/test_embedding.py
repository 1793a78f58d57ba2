"""The pass: what it does to models in whole runs, beside other passes, and what it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

import cook
from cook.data.calibration import given
from cook.errors import CookError
from cook.lowrank.table import factors
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.width import stream
from cook.model.hub import folder
from cook.model.probe.measure import tally
from cook.pipeline.plan import plan, plan_passes
from cook.recipe import load_recipe
from tests.helpers import bound, families, tiny
from tests.helpers.processes import two
from tests.helpers.traces import hooks
from tests.model.nn.test_embedding import first, inputs, made, shared

LOWRANK: dict[str, Any] = {"lowrank.embedding": {"rank": 4}}
HALF = {
    "prune.structured": {"budget": {"parameters": 0.55}, "gates": ["neurons", "hidden"], "end": 2, "speed": 1}
}


def applied(model: Any, *passes: Any, **options: Any) -> Any:
    return cook.apply(model, {"version": 1, "passes": list(passes)}, **options)


def without_weights(model: Any) -> Any:
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))


def reloaded(model: Any, path: Path) -> Any:
    """What a folder of the model gives, with the same parameters shared."""
    folder.save(model, path)
    again = type(model).from_pretrained(path).eval()
    assert shared(again) == shared(model)
    return again


def test_the_model_holds_the_truncated_svd_and_the_facts_say_what_it_lost():
    model, whole = made("BertForMaskedLM"), made("BertForMaskedLM")
    row = applied(model, LOWRANK).report.passes[0]
    table = whole.bert.embeddings.word_embeddings.weight.detach()
    found = factors(table, 4)
    assert torch.equal(model.get_input_embeddings().table.weight, found.table)
    assert torch.equal(model.get_input_embeddings().factor.weight, found.factor.T)
    product = model.get_input_embeddings().weight
    lost = float((product - table).norm() / table.norm())
    assert row.facts == {
        "rank": 4,
        "parameters_before": 23 * 16,
        "parameters_after": 4 * (23 + 16),
        "error": pytest.approx(lost, rel=1e-4),
        "energy": pytest.approx(1 - lost**2, rel=1e-4),
        "tied": ["cls.predictions.decoder"],
        "untied": [],
        "note": f"rank 4, 156 of 368 parameters left, {100 * row.facts['energy']:.1f} % of the energy kept",
    }
    assert row.after.parameters == row.before.parameters - 23 * 16 + 4 * 39
    assert row.after.bytes == row.before.bytes - 4 * (23 * 16 - 4 * 39)


def test_a_head_of_its_own_stays_whole_and_is_named():
    model = made("LlamaForCausalLM", tie_word_embeddings=False)
    planned = plan_passes(without_weights(model), bound.passes(LOWRANK))
    assert planned[0][1].note == "23 x 16 become 23 x 4 and 4 x 16; lm_head is not tied to it and stays whole"
    assert applied(model, LOWRANK).report.passes[0].facts["untied"] == ["lm_head"]
    tied = plan_passes(without_weights(made("GPT2LMHeadModel")), bound.passes(LOWRANK))
    assert tied[0][1].note == "23 x 16 become 23 x 4 and 4 x 16, of lm_head too"


@pytest.mark.parametrize(
    "name", ["BertForMaskedLM", "T5ForConditionalGeneration", "BartForConditionalGeneration"]
)
def test_a_plan_on_a_model_without_weights_says_the_sizes(name):
    model = made(name)
    meta = without_weights(model)
    plan_passes(meta, bound.passes(LOWRANK))
    applied(model, LOWRANK)
    assert {n: p.shape for n, p in meta.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert shared(meta) == shared(model)


def test_rows_count_as_often_as_texts_have_their_token(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("the good film\nthe bad film\n", encoding="utf-8")
    model, whole, tokenizer = tiny.model(), tiny.model(), tiny.tokenizer()
    options = {"rank": 4, "method": "frequency", "corpora": [str(file)]}
    applied(model, {"lowrank.embedding": options}, tokenizer=tokenizer)
    counts = torch.ones(23)
    for text in file.read_text(encoding="utf-8").splitlines():
        for token in tokenizer(text)["input_ids"]:
            counts[token] += 1
    table = whole.get_input_embeddings().weight.detach()
    found = factors(table, 4, counts)
    assert torch.allclose(model.get_input_embeddings().weight, found.table @ found.factor, atol=1e-6)
    often = counts > 1
    plain = factors(table, 4)

    def lost(product: Tensor) -> float:
        return float((product - table)[often].norm())

    assert lost(model.get_input_embeddings().weight) < lost(plain.table @ plain.factor)


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ({"rank": 10}, "23 x 16: a rank of 10 saves nothing", "at most 9"),
        ({"rank": 16}, "a rank of 16 saves nothing", "at most 9"),
        ({}, "a rank of 128 saves nothing", "at most 9"),
        ({"rank": 4, "method": "frequency"}, "no texts to count tokens in", "name files"),
        ({"rank": 4, "method": "frequency", "corpora": ["nowhere.txt"]}, "nowhere.txt", ""),
        ({"rank": 4, "corpora": ["texts.txt"]}, "texts are for method frequency", "leave corpora out"),
    ],
)
def test_what_saves_nothing_or_says_nothing_is_refused(options, words, hint):
    model = tiny.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CookError, match=words) as told:
        applied(model, {"lowrank.embedding": options}, tokenizer=tiny.tokenizer())
    assert hint in (told.value.hint or "")
    assert "passes[0]" in (told.value.where or "")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    (tmp_path / "texts.txt").write_text("the film\n", encoding="utf-8")
    options = {"rank": 4, "method": "frequency", "corpora": [str(tmp_path / "texts.txt")]}
    model = BertForMaskedLM(BertConfig(vocab_size=20, **tiny_sizes()))
    with pytest.raises(CookError, match="the tokenizer has 23 tokens, the model 20"):
        applied(model, {"lowrank.embedding": options}, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("rank", [0, -1, "4", 4.5])
def test_a_rank_is_a_whole_number(rank):
    with pytest.raises(CookError, match="rank"):
        applied(tiny.model(), {"lowrank.embedding": {"rank": rank}})


def test_the_largest_rank_that_saves_is_taken():
    model = tiny.model()
    before = tally(model).parameters
    applied(model, {"lowrank.embedding": {"rank": 9}})
    assert tally(model).parameters == before - 23 * 16 + 9 * 39 < before


def test_an_embedding_that_is_factorised_already_or_not_finite_is_refused(tmp_path):
    model = tiny.model()
    applied(model, LOWRANK)
    with pytest.raises(CookError, match="two factors already, of rank 4"):
        applied(model, LOWRANK)
    with pytest.raises(CookError, match="two factors already, of rank 4"):
        applied(reloaded(model, tmp_path / "model"), LOWRANK)
    model = tiny.model()
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 3] = torch.nan
    with pytest.raises(CookError, match="not finite"):
        applied(model, LOWRANK)


def test_vocabulary_pruning_takes_rows_of_the_table_and_of_the_head(tmp_path):
    (tmp_path / "texts.txt").write_text("the good film was fine\n", encoding="utf-8")
    tokenizer = tiny.tokenizer()
    model = BertForMaskedLM(BertConfig(vocab_size=23, **tiny_sizes())).eval()
    vocabulary = {"prune.vocabulary": {"corpora": [str(tmp_path / "texts.txt")], "alphabet": False}}
    alone = copy.deepcopy(model)
    applied(alone, LOWRANK)
    ids = tokenizer("the good film", return_tensors="pt")["input_ids"]
    result = applied(model, vocabulary, LOWRANK, tokenizer=tokenizer)
    new = result.tokenizer("the good film", return_tensors="pt")["input_ids"]
    words = result.tokenizer.convert_ids_to_tokens(range(len(result.tokenizer)))
    kept = torch.tensor(tokenizer.convert_tokens_to_ids(words))
    assert len(kept) < 23
    assert model.get_input_embeddings().table.weight.shape == (len(kept), 4)
    assert model.cls.predictions.decoder.table.weight is model.get_input_embeddings().table.weight
    assert torch.allclose(model(new).logits, alone(ids).logits[..., kept], atol=1e-6)
    assert torch.equal(reloaded(model, tmp_path / "model")(new).logits, model(new).logits)


def tiny_sizes() -> dict[str, int]:
    return {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel", "OPTForCausalLM", "LlamaForCausalLM"])
def test_the_hidden_width_narrows_behind_the_factor(name, tmp_path):
    model = made(name, **({"word_embed_proj_dim": 16} if name.startswith("OPT") else {}))
    batch = inputs(model)
    examples = given([{**batch, "labels": batch["input_ids"]}])
    factorised = copy.deepcopy(model)
    applied(factorised, LOWRANK)
    count = tally(factorised).parameters
    session = bound.session(model, HALF, LOWRANK, steps=4, calibration=examples)
    pruning = next(each for each in session.passes if each.name == "prune.structured")
    assert any(part.module.endswith(".factor") for part in stream(session.anatomy).parts)
    session.before_step(0)
    with torch.no_grad():
        pruning.gates.moved += torch.randn(
            pruning.gates.moved.shape, generator=torch.Generator().manual_seed(2)
        )
        pruning.gates.moved[-16:-8] -= 9  # eight dimensions are the first to go
    session.before_step(2)
    model.eval()
    with torch.no_grad():
        before = first(model, batch)
        session.step = 3
        session.finish()
        after = first(model, batch)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    facts = session.facts["prune.structured"]
    assert (facts["hidden"], facts["reached"]) == (8, pytest.approx(tally(model).parameters / count))
    embedding = model.get_input_embeddings()
    assert (embedding.embedding_dim, embedding.table.weight.shape) == (8, (23, 4))
    assert model.get_output_embeddings().factor.weight is embedding.factor.weight
    assert torch.equal(first(reloaded(model, tmp_path / "model"), batch), after)
    assert hooks(model) == {}


def test_the_factor_is_a_layer_for_other_passes(tmp_path):
    model = made("GPT2LMHeadModel")
    weights = {"prune.weights": {"sparsity": 0.5, "include": ["*.factor", "*.table"]}}
    result = applied(model, weights, LOWRANK)
    embedding = model.get_input_embeddings()
    zeros = int((embedding.table.weight == 0).sum() + (embedding.factor.weight == 0).sum())
    assert zeros == result.report.passes[0].after.zeros == 4 * 39 // 2
    batch = inputs(model)
    assert torch.equal(first(reloaded(model, tmp_path / "pruned"), batch), first(model, batch))

    model = made("GPT2LMHeadModel")
    alone = copy.deepcopy(model)
    applied(alone, LOWRANK)
    applied(model, {"quant.qat": {"include": ["*.factor"], "activations": None}}, LOWRANK)
    torch.testing.assert_close(first(model, batch), first(alone, batch), rtol=0.1, atol=0.1)
    assert not torch.equal(first(model, batch), first(alone, batch))
    folder.save(model, tmp_path / "rounded")
    again = type(model).from_pretrained(tmp_path / "rounded").eval()
    torch.testing.assert_close(first(again, batch), first(model, batch), rtol=1e-3, atol=1e-3)
    floats = again.dequantize()
    torch.testing.assert_close(first(floats, batch), first(model, batch), rtol=1e-3, atol=1e-3)
    folder.save(floats, tmp_path / "floats")
    back = type(model).from_pretrained(tmp_path / "floats").eval()
    torch.testing.assert_close(first(back, batch), first(model, batch), rtol=1e-3, atol=1e-3)


def test_both_factors_train_and_stay_tied():
    model = made("GPT2LMHeadModel")
    model.config.loss_type = "ForCausalLM"
    session = bound.session(model, LOWRANK, steps=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(session.module.parameters(), lr=0.01)
    session.bind(optimizer)
    batch = inputs(model)
    for step in range(3):
        session.before_step(step)
        sum(session.module({**batch, "labels": batch["input_ids"]}).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
    session.finish()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for part in ("table", "factor"):
        assert getattr(head, part).weight is getattr(embedding, part).weight
        assert not torch.equal(getattr(embedding, part).weight, before[f"transformer.wte.{part}.weight"])


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_gradient_checkpointing_changes_no_gradient(family):
    found = []
    for checkpointing in (False, True):
        model = families.made(family)
        session = bound.session(model, LOWRANK, steps=1)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        sum(session.module(families.batch(family)).values()).backward()
        embedding = model.get_input_embeddings()
        found.append([embedding.table.weight.grad, embedding.factor.weight.grad])
        session.close()
    for one, other in zip(*found, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


def recipe(root: Path, *passes: Any, **sections: Any) -> Any:
    tiny.table(root / "train.tsv", 48)
    tiny.table(root / "validation.tsv", 16, seed=1)
    value = {
        "version": 1,
        "model": {"path": str(tiny.folder(root / "model")), "task": "text-classification"},
        "data": {"train": str(root / "train.tsv"), "validation": str(root / "validation.tsv")},
        "train": {"steps": 6, "batch_size": 8, "learning_rate": 0.01, "log_every": 1, "device": "cpu"},
        "eval": {"latency": False},
        "passes": list(passes),
        "output": {"path": str(root / "out")},
        **sections,
    }
    return load_recipe(value)


LEARN = (
    {"distill.tinybert": {"parts": ["embeddings", "hidden"], "task_weight": 0}},
    {"distill.hidden": {"map": {"embeddings.output": "embeddings.output"}, "task_weight": 0}},
    {"distill.logits": {"temperature": 2, "task_weight": 0}},
)


@pytest.mark.usefixtures("clean_processes")
@pytest.mark.parametrize("student", [None, {"layers": [0, 1]}], ids=["self", "student"])
def test_a_bert_learns_from_itself_with_its_whole_embedding(student, tmp_path):
    told = recipe(tmp_path, LOWRANK, *LEARN, teacher="self", **({"student": student} if student else {}))
    planned = plan(told)
    report = cook.run(told, say=lambda _: None, progress=False)
    assert planned.after["parameters"] == report.model.after.parameters
    assert planned.after["bytes"] == report.model.after.bytes
    assert report.model.before.parameters - report.model.after.parameters == 23 * 16 - 4 * 39
    losses = [entry["loss"] for entry in report.train["history"] if "loss" in entry]
    first_step, last_step = losses[0], losses[-1]
    # The teacher has the whole embedding: there is something to learn from the first step on.
    names = [name for name in first_step if name.startswith(("embeddings", "hidden"))]
    assert len(names) >= 3
    for name in names:
        assert first_step[name] > 0
    assert sum(last_step[name] for name in names) < sum(first_step[name] for name in names)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().table.weight.shape == (23, 4)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["blueprint"]["edits"] == [
        {"op": "factorise", "module": "bert.embeddings.word_embeddings", "options": {"rank": 4}}
    ]


@pytest.mark.usefixtures("clean_processes")
def test_what_a_recipe_made_is_a_model_for_the_next_one(tmp_path):
    cook.run(recipe(tmp_path, LOWRANK), say=lambda _: None, progress=False)
    pruning = {"prune.heads": {"sparsity": 0.5}}, {"prune.neurons": {"sparsity": 0.5, "multiple": 1}}
    layers, vocabulary = {"prune.layers": {"keep": [1]}}, {"prune.vocabulary": {"alphabet": False}}
    model = {"path": str(tmp_path / "out"), "task": "text-classification"}
    told = recipe(
        tmp_path,
        *(*pruning, layers, vocabulary, LEARN[1], LEARN[2], "quant.qat"),
        teacher="self",
        model=model,
        output={"path": str(tmp_path / "next")},
    )
    report = cook.run(told, say=lambda _: None, progress=False)
    assert report.model.after.parameters < report.model.before.parameters
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "next")
    assert found.get_input_embeddings().table.embedding_dim == 4


def test_two_processes_train_the_same_factors(tmp_path):
    two("tests.lowrank.processes", str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    model = made("GPT2LMHeadModel")
    applied(model, LOWRANK)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, one[name])}
    assert {f"transformer.wte.{part}.weight" for part in ("table", "factor")} <= moved
    assert Anatomy(model).roots("embeddings")
