"""The loss terms of a session: their names and weights, the teacher, and modules that passes train."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import cook
from cook.errors import CookError
from cook.options import Window
from cook.passes import Pass, Term
from tests.helpers import bound, families, tiny
from tests.helpers.probe import Probe, session

# Terms


def test_terms_are_weighted_and_named():
    value = torch.tensor(2.0, requires_grad=True)
    passes = [
        Probe(id="a", terms={"near": Term(value, 3.0)}, weight=0.5),
        Probe(id="test.probe", terms={"near": Term(value), "far": Term(value, 0.0)}, weight=0.5),
        Probe(id="b", terms={"task": Term(value)}),
        Probe({"end": 0}, id="late", terms={"never": Term(value)}, weight=0),
    ]
    bound_to = session(*passes, model=tiny.model().eval())
    terms = bound_to.module(tiny.batch())
    plain = tiny.model().eval()(**tiny.batch()).loss.item()
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"task": plain / 4, "near (a)": 6, "near": 2, "far": 0, "task (b)": 2}
    )
    assert {name: term.item() for name, term in bound_to.unweighted.items()} == pytest.approx(
        {"task": plain, "near (a)": 2, "near": 2, "far": 2, "task (b)": 2}
    )
    assert not any(term.requires_grad for term in bound_to.unweighted.values())
    sum(terms.values()).backward()
    assert value.grad == 5


def test_a_pass_used_twice_keeps_its_names_at_every_step():
    items = [{"distill.logits": {"end": "50%"}}, {"distill.logits": {"start": "20%", "loss": "mse"}}]
    bound_to = bound.session(tiny.model(), *items, teacher="self")
    names = [set(terms) - {"task"} for terms in bound.train(bound_to)]
    second = "logits (distill.logits#2)"
    assert names == 2 * [{"logits"}] + 3 * [{"logits", second}] + 5 * [{second}]


def test_two_passes_with_one_term_name_are_told_apart():
    value = torch.tensor(1.0)

    class Other(Probe):
        name = "test.other"

    bound_to = session(Probe(terms={"near": Term(value)}), Other(terms={"near": Term(value)}))
    assert set(bound_to.module(tiny.batch())) == {"task", "near", "near (test.other)"}


# Teacher


def test_self_is_a_copy_of_the_model_as_it_was():
    for given_teacher in ("self", "the model"):
        model = tiny.model()
        teacher: Any = model if given_teacher == "the model" else given_teacher
        bound_to = bound.session(model, "distill.logits", teacher=teacher)
        before = bound.logits(model)
        assert all(parameter.requires_grad for parameter in model.parameters())
        bound.train(bound_to, rate=0.1)
        assert not torch.equal(bound.logits(model), before)
        bound_to.module(tiny.batch(seed=99))
        torch.testing.assert_close(bound_to.teachers[0].outputs.logits, before)


def test_the_teacher_runs_once_a_forward_frozen_and_apart():
    teacher = tiny.model(seed=1).train()
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    items = [{"distill.logits": {"end": 3}}, {"distill.logits": {"loss": "mse", "end": 3}}]
    bound_to = bound.session(tiny.model(), *items, steps=5, teacher=teacher)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    bound.train(bound_to)
    assert len(calls) == 3, "once a step, however many ask, and never when nobody asks"
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    own = {id(parameter) for parameter in bound_to.module.parameters()}
    assert not own & {id(parameter) for parameter in teacher.parameters()}
    assert set(bound_to.module.state_dict()) == {f"model.{name}" for name in bound_to.model.state_dict()}


def test_no_labels_reach_the_teacher():
    teacher = tiny.model(seed=1)
    seen = []
    teacher.register_forward_pre_hook(lambda _, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    bound_to = bound.session(tiny.model(), "distill.logits", teacher=teacher)
    bound_to.module(tiny.batch())
    assert seen == [{"input_ids", "attention_mask"}]
    bound_to.place("cpu")


# Modules that passes train


class Projecting(Pass):
    """Trains a projection of its own."""

    name, summary, Options = "test.projecting", "", Window

    def attach(self, session):
        self.projection = session.train_also(self, nn.Linear(2, 2))

    def losses(self, session):
        return {"projected": Term(self.projection(session.outputs.logits).square().mean())}


def test_a_module_of_a_pass_trains_and_stays_out_of_the_model():
    model = tiny.model()
    names = list(model.state_dict())
    projecting = Projecting({"start": 2, "end": 6})
    bound_to = session(projecting, model=model)
    start = projecting.projection.weight.detach().clone()
    bound.train(bound_to)
    assert not torch.equal(projecting.projection.weight, start)
    assert "trained.test_projecting.weight" in bound_to.state_dict()["module"]
    bound_to.finish()
    assert list(model.state_dict()) == names


def test_a_module_that_is_not_due_still_gets_a_gradient_of_zero():
    projecting = Projecting({"start": 5})
    bound_to = session(projecting)
    plain = tiny.model().eval()(**tiny.batch()).loss
    terms = bound_to.module.eval()(tiny.batch())
    torch.testing.assert_close(terms["task"], plain)
    terms["task"].backward()
    assert all((p.grad == 0).all() for p in projecting.projection.parameters())


def test_a_pass_has_one_trained_module():
    projecting = Projecting({})
    bound_to = session(projecting)
    with pytest.raises(ValueError, match="trains a module already"):
        bound_to.train_also(projecting, nn.Linear(1, 1))


INSIDE = [
    {"distill.hidden": {"map": {"layers[3].output": "layers[3].output"}}},
    {"distill.tinybert": {"layers": {"3": 3}, "parts": ["hidden"]}},
    {"distill.patient": {"layers": {"2": 2}, "tokens": "all"}},
]


@pytest.mark.parametrize("item", INSIDE)
@pytest.mark.parametrize("length", [5, 7])
def test_what_a_decoder_is_padded_with_is_not_learned(item: Any, length: int) -> None:
    """Texts have seven tokens: answers of as many, and of others."""

    def terms(garbage: int) -> dict[str, float]:
        torch.manual_seed(0)
        config = families.made("bart").config
        student, teacher = (AutoModelForSeq2SeqLM.from_config(config).eval() for _ in range(2))
        labels = torch.randint(5, 23, (4, length))
        labels[1, 3:] = -100
        answers = torch.randint(5, 23, (4, length))
        answers[1, 3:] = garbage
        batch = tiny.batch() | {"labels": labels, "decoder_input_ids": answers}
        batch["decoder_attention_mask"] = (labels != -100).long()
        config = {"version": 1, "passes": [item]}
        with cook.attach(student, config, total_steps=2, teacher=teacher) as session:
            session.before_step(0)
            found = session.module(batch)
            return {name: value.item() for name, value in found.items() if name != "task"}

    assert terms(7) == pytest.approx(terms(9), rel=1e-5)
    assert terms(7)


@pytest.mark.parametrize(
    ("problem", "labels"), [("regression", 1), ("multi_label_classification", 3), (None, 1)]
)
def test_outputs_that_are_no_distribution_are_not_learned_as_one(problem: str | None, labels: int) -> None:
    config = copy.deepcopy(tiny.model().config)
    config.num_labels, config.problem_type = labels, problem
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(CookError, match="are no distribution") as caught:
        cook.attach(model, {"version": 1, "passes": ["distill.logits"]}, total_steps=2, teacher="self")
    assert "mse" in str(caught.value.hint)
    learned = {"version": 1, "passes": [{"distill.logits": {"loss": "mse"}}]}
    cook.attach(model, learned, total_steps=2, teacher="self").close()


def test_starts_and_ends_are_no_logits() -> None:
    model = AutoModelForQuestionAnswering.from_config(tiny.model().config)
    with pytest.raises(CookError, match="starts and ends"):
        cook.attach(model, {"version": 1, "passes": ["distill.logits"]}, total_steps=2, teacher="self")


def test_two_teachers_are_a_list() -> None:
    pair = (tiny.model(seed=1), tiny.model(seed=2))
    with pytest.raises(CookError, match="found a BertForSequenceClassification") as caught:
        cook.attach(tiny.model(), {"version": 1, "passes": ["distill.logits"]}, total_steps=2, teacher=pair)
    assert "list" in str(caught.value.hint)
    assert len(str(caught.value)) < 300
