"""The session: windows, needs, hooks that always leave, and state that survives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertModel

from cook.errors import CookError
from cook.passes import Pass
from cook.session import Session
from tests.helpers import bound, tiny
from tests.helpers.probe import Probe, hooks_of, session

# Order and windows


def test_passes_are_called_in_the_order_of_the_contract():
    log: list[tuple[str, str]] = []
    attached = []
    made = [
        Probe(id="a", log=log, phase="precision"),
        Probe(id="b", log=log, phase="structure"),
        Probe(id="c", log=log, phase="precision"),
    ]
    bound_to = session(*made, steps=1, before_attach=lambda each: attached.append((each.id, len(log))))
    bound.train(bound_to)
    bound_to.finish()
    assert attached == [("a", 0), ("b", 1), ("c", 2)]
    steps = [(name, what) for what in ("attach", "before_step", "losses", "after_step") for name in "abc"]
    ends = [(name, what) for name in "bac" for what in ("finish", "facts")]
    assert log == steps + ends
    assert bound_to.facts == {name: {"kept": 1} for name in "abc"}


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 40), start=st.integers(0, 40), end=st.integers(0, 40))
def test_losses_are_asked_in_the_window_only(total, start, end):
    probe = Probe({"start": min(start, total), "end": min(end, total)})
    if probe.options.end < probe.options.start:
        with pytest.raises(CookError, match="before its start"):
            session(probe, steps=total, model=_MODEL)
        return
    bound_to = session(probe, steps=total, model=_MODEL)
    for step in range(total):
        bound_to.before_step(step)
        assert (probe in bound_to.active()) == (probe.options.start <= step < probe.options.end)
    bound_to.close()
    assert hooks_of(_MODEL) == 0


_MODEL = tiny.model()


def test_schedule_points_become_steps():
    options = [{"start": "25%", "end": "1.5 epochs"}, {"start": 3, "end": "100%"}, {"start": "1 epoch"}, {}]
    passes = [Probe(given, id=str(index)) for index, given in enumerate(options)]
    session(*passes, steps=20, steps_per_epoch=8)
    assert [(p.window.start, p.window.end) for p in passes] == [(5, 12), (3, 20), (8, 20), (0, 20)]


@pytest.mark.parametrize(
    ("given_options", "where", "message"),
    [
        ({"start": "half"}, "here.start", "no point"),
        ({"end": 21}, "here.end", "past the end of the run, which has 20 steps"),
        ({"start": 10, "end": "10%"}, "here.end", "ends at step 2, before its start at step 10"),
    ],
)
def test_wrong_windows_point_at_their_option(given_options, where, message):
    with pytest.raises(CookError, match=message) as caught:
        session(Probe(given_options, where="here"), steps=20)
    assert caught.value.where == where


# Needs


def test_what_a_pass_needs_must_be_there():
    with pytest.raises(CookError, match="needs a teacher"):
        bound.session(tiny.model(), "distill.logits")
    with pytest.raises(CookError, match="needs training"):
        bound.session(tiny.model(), "distill.logits", steps=0, teacher="self")
    assert not bound.session(tiny.model(), {"prune.weights": {"sparsity": 0.5}}, steps=0).trains


def test_a_model_must_give_a_loss():
    with pytest.raises(CookError, match="no loss") as caught:
        session().module({name: value for name, value in tiny.batch().items() if name != "labels"})
    assert "labels" in caught.value.hint
    bare = BertModel(tiny.model().config)
    with pytest.raises(CookError, match="no loss"):
        session(model=bare).module({"input_ids": tiny.batch()["input_ids"]})


def test_a_teacher_is_no_path():
    with pytest.raises(CookError, match=r"found './teacher' for a teacher, expected a model or 'self'"):
        bound.session(tiny.model(), "distill.logits", teacher="./teacher")


def test_a_teacher_with_the_same_labels_in_another_order_is_refused():
    teacher = tiny.model(seed=1)
    teacher.config.label2id = {"negative": 1, "positive": 0}
    with pytest.raises(CookError, match=r"the teacher's labels are .*'negative': 1.* the student's are"):
        bound.session(tiny.model(), "distill.logits", teacher=teacher)
    # Names of its own say nothing.
    teacher.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    bound.session(tiny.model(), "distill.logits", teacher=teacher).close()


def test_a_teacher_reads_what_is_padded_for_the_student():
    """GPT-2 has no padding token of its own, and refuses batches until it is told one."""
    teacher, student = tiny.model("gpt2", seed=1), tiny.model("gpt2")
    expected = teacher.eval()(**tiny.batch("gpt2")).logits
    for other in (None, 5):
        teacher.config.pad_token_id = other
        bound_to = bound.session(student, "distill.logits", teacher=teacher)
        bound_to.module(tiny.batch("gpt2"))
        assert torch.equal(bound_to.teachers[0].outputs.logits, expected)


# Hooks


def test_finish_removes_all_hooks():
    model = tiny.model()
    bound_to = session(Probe(id="a"), Probe(id="b"), model=model)
    optimizer = torch.optim.AdamW(model.parameters())
    bound_to.bind(optimizer)
    assert hooks_of(model) == 4
    assert len(bound_to.hooks) == 5
    bound_to.before_step(0)
    bound_to.module(tiny.batch())
    bound_to.finish()
    assert hooks_of(model) == len(bound_to.hooks) == len(optimizer._optimizer_step_post_hooks) == 0
    assert not bound_to.batch
    assert not bound_to.outputs


@pytest.mark.parametrize("breaks", ["attach", "before_step", "losses", "after_step", "finish", "facts"])
def test_hooks_leave_on_any_exception(breaks):
    model = tiny.model()

    def go() -> None:
        with session(Probe(id="a"), Probe(id="b", breaks=breaks), model=model, steps=2) as bound_to:
            bound.train(bound_to)
            bound_to.finish()

    with pytest.raises(KeyError, match=breaks):
        go()
    assert hooks_of(model) == 0


@pytest.mark.parametrize("breaks", ["attach", "finish"])
def test_attaching_and_finishing_clean_up_without_a_with(breaks):
    model = tiny.model()

    def go() -> None:
        session(Probe(id="a"), Probe(id="b", breaks=breaks), model=model).finish()

    with pytest.raises(KeyError, match=breaks):
        go()
    assert hooks_of(model) == 0


def test_a_wrong_window_or_a_failing_callback_leaves_no_hook():
    model = tiny.model()
    with pytest.raises(CookError):
        session(Probe(id="a"), Probe({"start": 99}, id="b"), model=model)
    assert hooks_of(model) == 0

    def fail(each: Pass) -> None:
        if each.id == "b":
            raise KeyError("callback")

    with pytest.raises(KeyError):
        session(Probe(id="a"), Probe(id="b"), model=model, before_attach=fail)
    assert hooks_of(model) == 0


# Masks and steps


def test_masks_follow_the_inner_optimizer():
    class Wrapper:
        """As accelerate wraps: it has no hooks of its own."""

        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = tiny.model()
    bound_to = bound.session(model, {"prune.weights": {"sparsity": 0.5, "schedule": "constant"}})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    bound_to.bind(Wrapper(optimizer))
    bound_to.before_step(0)
    zeros = {name: model.get_parameter(name) == 0 for name in bound_to.passes[0].parameters}
    for _ in range(3):
        bound_to.module(tiny.batch())["task"].backward()
        optimizer.step()
    for name, zero in zeros.items():
        assert torch.equal(model.get_parameter(name) == 0, zero)


# State


def test_an_interrupted_run_goes_on_bit_for_bit():
    items = [
        {"distill.logits": {"temperature": 2, "start": 2}},
        {"prune.weights": {"sparsity": 0.6, "end": "80%"}},
        {"quant.qat": {"start": "40%", "observer": "moving"}},
    ]

    def made() -> tuple[Session, torch.optim.Optimizer]:
        new = bound.session(tiny.model(), *items, teacher=tiny.model(seed=1))
        optimizer = torch.optim.AdamW(new.module.parameters(), lr=0.01)
        new.bind(optimizer)
        new.module.train()
        return new, optimizer

    def go(new: Session, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            new.before_step(step)
            sum(new.module(tiny.batch(seed=step)).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            new.after_step()

    whole, first, second = made(), made(), made()
    go(*whole, range(10))
    go(*first, range(6))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    go(*second, range(6, 10))
    assert bound.logits(whole[0].model).equal(bound.logits(second[0].model))
    for one in (whole[0], second[0]):
        one.finish()
    assert whole[0].facts == second[0].facts
    ours, theirs = whole[0].model.state_dict(), second[0].model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_state_is_tensors_and_plain_values(tmp_path):
    bound_to = bound.session(tiny.model(), {"prune.weights": {"sparsity": 0.6}}, "quant.qat")
    bound.train(bound_to)
    torch.save(bound_to.state_dict(), tmp_path / "state")
    read = torch.load(tmp_path / "state", weights_only=True)
    other = bound.session(tiny.model(), {"prune.weights": {"sparsity": 0.6}}, "quant.qat")
    other.load_state_dict(read)
    assert torch.equal(bound.logits(other.model), bound.logits(bound_to.model))
    assert other.passes[0].status() == "60% zero"


def test_the_states_of_passes_go_by_id():
    one = [Probe(id="a"), Probe(id="b")]
    one[1].kept = 7
    two = [Probe(id="a"), Probe(id="b")]
    session(*two).load_state_dict(session(*one).state_dict())
    assert [each.kept for each in two] == [0, 7]
