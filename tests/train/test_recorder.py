"""When states of the model are recorded, and what is in them."""

import pytest

from cook.model.nn.masks import Masks
from cook.model.probe.measure import tally
from cook.passes import Window
from cook.session import Session
from cook.train.recorder import StateRecorder
from tests.helpers import bound, tiny

PRUNE = {"prune.weights": {"sparsity": 0.5, "start": 2, "end": 6}}
QUANT = {"quant.qat": {"start": 4}}


class Counted:
    """StateRecorder over a tiny model, and how often it was evaluated."""

    def __init__(self, *items, steps=8, fill=False):
        self.model = tiny.model()
        if fill:  # biases begin at zero, and would count for the pass whose mask lies over them
            for parameter in self.model.parameters():
                parameter.data[parameter == 0] = 0.01
        self.before = tally(self.model)
        self.passes = bound.passes(*items)
        self.evaluations = 0
        masks = Masks(self.model)
        self.recorder = StateRecorder(
            self.model, self.passes, evaluate=self.evaluate, macs=lambda: 7, masks=masks
        )
        self.session = Session(
            self.passes,
            self.model,
            total_steps=steps,
            before_attach=self.recorder.attaching,
            around=self.recorder.acting,
            masks=masks,
        )

    def evaluate(self):
        self.evaluations += 1
        return {"zeros": float(tally(self.model).zeros)}

    def run(self, steps):
        for step in steps:
            self.recorder.window_opens(step)
            self.session.before_step(step)
            self.session.after_step()
            self.recorder.window_closes(step + 1)
        return self

    def told(self):
        return {
            name: [(row["when"], row["step"]) for row in rows] for name, rows in self.recorder.states.items()
        }


def test_states_are_recorded_at_both_ends():
    counted = Counted(PRUNE, QUANT).run(range(8))
    assert counted.told() == {
        "prune.weights": [("attached", 0), ("start", 2), ("end", 6)],
        "quant.qat": [("attached", 0), ("start", 4), ("end", 8)],
    }
    counted.session.finish()
    final = counted.recorder.finished(8)
    for rows in counted.recorder.states.values():
        assert rows[-1] == {**final, "when": "finished", "step": 8}
    # Both are attached in one state; then steps 2, 4, 6, 8, and the finished model.
    assert counted.evaluations == 6


def test_a_state_is_what_the_model_is():
    counted = Counted(PRUNE, QUANT).run(range(8))
    now = tally(counted.model)
    last = counted.recorder.state(8)
    assert (last["parameters"], last["zeros"], last["bytes"]) == (now.parameters, now.zeros, now.bytes)
    assert last["sparsity"] == now.zeros / now.parameters
    assert last["macs"] == 7
    assert last["removed"] == 0
    assert last["metrics"] == {"zeros": now.zeros}
    counted.session.finish()
    finished = counted.recorder.finished(8)
    assert finished["zeros"] == now.zeros


def test_equal_states_are_evaluated_once_and_are_not_shared():
    counted = Counted(PRUNE)
    before = counted.evaluations
    first = counted.recorder.state(3)
    second = counted.recorder.state(3)
    assert counted.evaluations == before + 1
    second["zeros"] = -1
    assert counted.recorder.state(3) == first


BOTH = {"prune.weights": {"sparsity": 0.5, "end": 6}}, {"quant.qat": {"start": 0}}
LATE = {"prune.heads": {"sparsity": 0.5, "importance": "random"}}


@pytest.mark.parametrize(
    "items",
    [
        BOTH,
        BOTH[::-1],
        (LATE, *BOTH),
        ({"prune.neurons": {"sparsity": 0.5, "importance": "magnitude"}}, BOTH[1]),
    ],
)
def test_amounts_belong_to_the_pass_that_made_them(items):
    """Although all windows overlap; together the amounts are what the whole run did."""
    counted = Counted(*items, fill=True)
    before = counted.before
    counted.run(range(8))
    counted.session.finish()
    after, told = tally(counted.model), counted.recorder.amounts
    assert sum(each["zeros"] for each in told.values()) == after.zeros - before.zeros
    assert sum(each["removed"] for each in told.values()) == before.parameters - after.parameters
    assert sum(each["bytes"] for each in told.values()) == after.bytes - before.bytes
    assert told["quant.qat"]["bytes"] < 0 == told["quant.qat"]["removed"]
    if "prune.weights" in told:
        assert told["prune.weights"]["bytes"] == told["prune.weights"]["removed"] == 0
        assert told["prune.weights"]["zeros"] > 0.3 * after.parameters
    for name in ("prune.heads", "prune.neurons"):
        if name in told:
            assert told[name]["removed"] == before.parameters - after.parameters > 0
            assert told[name]["bytes"] == -4 * told[name]["removed"]


def test_an_empty_window_has_no_end_of_its_own():
    counted = Counted(PRUNE)
    counted.passes[0].window = Window(3, 3)
    counted.run(range(8))
    assert [row["when"] for row in counted.recorder.states["prune.weights"]] == ["attached", "start"]


@pytest.mark.parametrize("stop", range(1, 8))
def test_an_interrupted_run_tells_the_same(stop):
    whole = Counted(PRUNE, QUANT).run(range(8))
    first = Counted(PRUNE, QUANT).run(range(stop))
    second = Counted(PRUNE, QUANT)
    second.session.load_state_dict(first.session.state_dict())
    second.recorder.load_state_dict(first.recorder.state_dict())
    second.run(range(stop, 8))
    assert second.recorder.states == whole.recorder.states
