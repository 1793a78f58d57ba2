"""Loops of one's own that forget a call: said in words, and never a result that is not what was asked for."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

import cook
from cook.errors import CookError, RunError
from cook.model.nn import surgery
from cook.session import Session
from tests.helpers import tiny

STEPS = 6
HALF = {"sparsity": 0.5, "schedule": "constant", "end": "50%"}
LATER = {**HALF, "start": 2, "importance": "magnitude"}  # when momentum moves what is held
PASSES = {
    "weights": {"prune.weights": HALF},
    "heads": {"prune.heads": LATER},
    "neurons": {"prune.neurons": LATER},
    "pattern": {"prune.weights": {"pattern": "2:4"}},
}


def attached(name: str = "weights", **options: Any) -> Session:
    config = {"version": 1, "passes": [PASSES[name]]}
    return cook.attach(tiny.model(), config, total_steps=STEPS, **options)


def step(session: Session, number: int, optimizer: Any) -> None:
    """All of a step but `after_step`."""
    session.before_step(number)
    sum(session.module(tiny.batch(seed=number)).values()).backward()
    optimizer.step()
    optimizer.zero_grad()


def adamw(session: Session) -> torch.optim.Optimizer:
    return torch.optim.AdamW(session.module.parameters(), lr=0.1)


@pytest.mark.parametrize("name", PASSES)
def test_no_optimizer_is_bound(name):
    with attached(name) as session:
        optimizer = adamw(session)
        first = PASSES[name][next(iter(PASSES[name]))].get("start", 0)
        for number in range(first + 1):
            step(session, number, optimizer)
            if number < first:
                session.after_step()
        with pytest.raises(CookError, match=r"where a hard mask holds them.*\n.*session\.bind\(optimizer\)"):
            session.after_step()


@pytest.mark.parametrize("name", PASSES)
def test_nothing_is_called_but_finish(name):
    with attached(name) as session:
        optimizer = adamw(session)
        for number in range(STEPS):
            step(session, number, optimizer)
        with pytest.raises(CookError, match=r"where a hard mask holds them.*\n.*session\.bind\(optimizer\)"):
            session.finish()


def test_another_optimizer_makes_the_steps():
    with attached() as session:
        session.bind(adamw(session))
        step(session, 0, adamw(session))
        with pytest.raises(CookError, match=r"\n.*for every optimizer that makes steps"):
            session.after_step()


def test_one_of_two_optimizers_is_bound():
    with attached() as session:
        halves = [list(session.module.parameters())[part::2] for part in (0, 1)]
        first, second = (torch.optim.AdamW(half, lr=0.1) for half in halves)
        session.bind(first)
        session.before_step(0)
        sum(session.module(tiny.batch()).values()).backward()
        first.step()
        second.step()
        with pytest.raises(CookError, match="where a hard mask holds them"):
            session.after_step()


def test_no_schedule_is_moved():
    with attached() as session, pytest.raises(CookError, match=r"call session\.before_step\(step\)"):
        session.after_step()


LOOPS = {
    "weights": ({"prune.weights": HALF}, {}),
    "structured": ({"prune.structured": {"budget": {"parameters": 0.8}}}, {}),
    "movement": ({"prune.weights": {"sparsity": 0.5, "method": "movement"}}, {}),
    "logits": ({"distill.logits": {"start": "50%"}}, {"teacher": "self"}),
    "integers": ({"quant.qat": {"start": "50%"}}, {}),
}


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("missing", ["before_step", "after_step"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_call_is_missing_in_the_whole_loop(name, missing, bound):
    """Without `before_step` nothing was scheduled, and `finish` must not make up for it in silence."""
    entry, options = LOOPS[name]
    config = {"version": 1, "passes": [entry]}
    with cook.attach(tiny.model().train(), config, total_steps=STEPS, **options) as session:
        optimizer = adamw(session)
        if bound:
            session.bind(optimizer)
        for number in range(STEPS):
            if missing != "before_step":
                session.before_step(number)
            sum(session.module(tiny.batch(seed=number)).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
        with pytest.raises(CookError, match=rf"session\.{missing}\(\) was never called|session\.bind"):
            session.finish()


def test_steps_that_are_all_skipped_need_no_end():
    """As with gradients that overflow in half precision: `after_step` is for real steps alone."""
    with attached() as session:
        session.bind(adamw(session))
        session.before_step(0)
        sum(session.module(tiny.batch()).values()).backward()
        session.finish()


def test_weights_that_are_replaced_after_the_last_step():
    with attached() as session:
        optimizer = adamw(session)
        session.bind(optimizer)
        average = AveragedModel(session.model)  # begins with the weights before anything was pruned
        average.update_parameters(session.model)
        for number in range(STEPS):
            step(session, number, optimizer)
            session.after_step()
            average.update_parameters(session.model)
        held = {name: value.clone() for name, value in session.model.state_dict().items()}
        session.model.load_state_dict(average.module.state_dict())
        with pytest.raises(CookError, match=r"\n.*call session\.masks\.apply\(\)"):
            session.finish()
    assert held.keys() == session.model.state_dict().keys()


def test_replaced_weights_are_masked_again_and_the_facts_are_those_of_the_model():
    with attached() as session:
        optimizer = adamw(session)
        session.bind(optimizer)
        for number in range(STEPS):
            step(session, number, optimizer)
            session.after_step()
        for parameter in session.model.parameters():
            parameter.data.add_(0.1)
        session.masks.apply()
        session.finish()
        facts = session.facts["prune.weights"]
        names = [name for name in session.model.state_dict() if ".layer." in name and name.endswith("weight")]
        weights = [session.model.get_parameter(name) for name in names if "LayerNorm" not in name]
        assert facts["zeros"] == sum(int((each == 0).sum()) for each in weights)
        assert facts["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_an_optimizer_that_accelerate_wraps():
    with attached() as session:
        optimizer = Accelerator(cpu=True).prepare(adamw(session))
        session.bind(optimizer)
        for number in range(STEPS):
            step(session, number, optimizer)
            session.after_step()
        session.finish()
        assert session.facts["prune.weights"]["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_a_loop_that_ends_early_gets_what_was_asked_for():
    with attached("heads") as session:
        optimizer = adamw(session)
        session.bind(optimizer)
        step(session, 0, optimizer)
        session.after_step()
        session.finish()
        assert session.facts["prune.heads"]["removed"] == 4


def test_a_batch_is_a_mapping_or_keywords():
    config = {"version": 1, "passes": ["distill.logits"]}
    with cook.attach(tiny.model().eval(), config, total_steps=STEPS, teacher=tiny.model(seed=1)) as session:
        session.before_step(0)
        batch = tiny.batch()
        plain = {name: float(value) for name, value in session.module(batch).items()}
        assert {name: float(value) for name, value in session.module(**batch).items()} == plain
        wrapped = Accelerator(cpu=True).prepare(session.module)
        assert {name: float(value) for name, value in wrapped(**batch).items()} == plain
        for given, named in (((), {}), ((batch,), batch), ((list(batch.values()),), {}), (({},), {})):
            with pytest.raises(CookError, match=r"session\.module"):
                session.module(*given, **named)


def test_a_loop_of_fewer_or_more_steps_is_said():
    with attached() as session:
        optimizer = adamw(session)
        session.bind(optimizer)
        for number in range(2):
            step(session, number, optimizer)
            session.after_step()
        with pytest.warns(UserWarning, match="the loop made 2 of 6 steps"):
            session.finish()
    with attached() as session:
        session.before_step(STEPS)
        with pytest.warns(UserWarning, match="step 7 is beyond the 6 steps"):
            session.before_step(STEPS + 1)
    with attached() as session, pytest.warns(UserWarning, match="the loop made 0 of 6 steps"):
        session.finish()


def test_a_session_that_is_left_without_finish_is_said():
    session = attached()
    with session:
        optimizer = adamw(session)
        session.bind(optimizer)
        step(session, 0, optimizer)
        session.after_step()
        with pytest.warns(UserWarning, match=r"session\.finish\(\) was not called"):
            session.__exit__(None, None, None)
        session.finish()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attached():  # nothing was trained
            pass
        session.__exit__(KeyError, KeyError(), None)  # an exception says enough


STRUCTURED = {"budget": {"parameters": 0.8}, "end": 3, "speed": 1}
UNITS = "cook.model.edits.removal.Removal.remove"
LAYERS = "cook.model.edits.removal.Removal.remove_layers"


@pytest.mark.parametrize(
    ("step", "broken", "words"),
    [
        (
            {"prune.heads": {"sparsity": 0.5, "importance": "magnitude"}},
            UNITS,
            r"heads of .*: the finished model has 4, expected \d",
        ),
        (
            {"prune.structured": {**STRUCTURED, "gates": ["neurons"]}},
            UNITS,
            r"neurons of .* has \d+, expected \d+",
        ),
        (
            {"prune.structured": {**STRUCTURED, "gates": ["layers"]}},
            LAYERS,
            r"layers: the finished model has \[0, 1\], expected \[\d\]",
        ),
        (
            {"prune.structured": {**STRUCTURED, "gates": ["hidden"]}},
            UNITS,
            r"hidden of .* has 16, expected \d+",
        ),
        (
            {"prune.layers": {"keep": [1]}},
            LAYERS,
            r"layers: the finished model has \[0, 1\], expected \[1\]",
        ),
        (
            {"lowrank.linear": {"rank": 2, "method": "svd"}},
            "cook.lowrank.linear.surgery.replace",
            "rank of .*has None, expected 2",
        ),
    ],
)
def test_what_a_pass_says_that_it_did_is_measured(step, broken, words, monkeypatch):
    monkeypatch.setattr(broken, lambda *_: None)
    session = cook.attach(tiny.model(), {"version": 1, "passes": [step]}, total_steps=STEPS)
    with pytest.raises(RunError, match=words):
        session.finish()


def test_that_integers_are_stored_is_measured(monkeypatch):
    session = cook.attach(tiny.model(), {"version": 1, "passes": ["quant.qat"]}, total_steps=STEPS)
    monkeypatch.setattr("cook.quant.qat.surgery.replace", lambda *_: None)
    with pytest.raises(RunError, match=r"bits of .*has None, expected 8"):
        session.finish()


def test_what_factorising_the_embedding_left_is_measured():
    config = {"version": 1, "passes": [{"lowrank.embedding": {"rank": 4}}]}
    session = cook.attach(tiny.model(), config, total_steps=STEPS)
    surgery.replace(session.model, "bert.embeddings.word_embeddings", torch.nn.Embedding(120, 16))
    with pytest.raises(RunError, match=r"rank of bert.*has None, expected 4"):
        session.finish()


def test_how_many_tokens_are_left_is_measured(monkeypatch, tmp_path):
    (tmp_path / "words.txt").write_text(f"{tiny.WORDS[0]} {tiny.WORDS[1]}\n")
    monkeypatch.setattr("cook.prune.vocabulary.cut", lambda *_: [])
    tokenizer = tiny.tokenizer()
    model = tiny.model()
    config = {"version": 1, "passes": [{"prune.vocabulary": {"corpora": [str(tmp_path / "words.txt")]}}]}
    session = cook.attach(model, config, total_steps=STEPS, tokenizer=tokenizer)
    with pytest.raises(RunError, match=r"tokens: the finished model has \d+, expected \d+"):
        session.finish()


def test_what_sharing_saves_is_measured(monkeypatch):
    monkeypatch.setattr("cook.share.layers.ShareLayers._tie", lambda *_: [])
    config = {"version": 1, "passes": [{"share.layers": {"groups": "all"}}]}
    with pytest.raises(RunError, match=r"parameters saved: the finished model has 0, expected \d+"):
        cook.attach(tiny.model(), config, total_steps=STEPS)
