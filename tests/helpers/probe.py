"""A pass that does what a test asks, and writes down what it is asked."""

from __future__ import annotations

from typing import Any

from torch import nn

from cook.options import Window
from cook.passes import Pass
from cook.session import Session
from tests.helpers import tiny


class Probe(Pass):
    """Does what a test asks, and writes down what it is asked."""

    name, summary, Options = "test.probe", "", Window

    def __init__(
        self, options=None, *, log=None, terms=None, breaks=None, weight=1.0, phase="observe", **names: Any
    ):
        super().__init__(options or {}, **names)
        self.log = log if log is not None else []
        self.given_terms, self.breaks, self.weight = terms or {}, breaks, weight
        self.phase = phase  # type: ignore[misc]
        self.kept = 0

    def _note(self, what: str) -> None:
        self.log.append((self.id, what))
        if self.breaks == what:
            raise KeyError(what)

    def attach(self, session):
        session.hooks.forward(session.model.bert.encoder, lambda *_: None)
        session.hooks.forward_pre(session.model.classifier, lambda *_: None)
        self._note("attach")

    def before_step(self, session):
        self.kept += 1
        self._note("before_step")

    def losses(self, session):
        self._note("losses")
        return self.given_terms

    def task_weight(self):
        return self.weight

    def after_step(self, session):
        self._note("after_step")

    def finish(self, session):
        self._note("finish")

    def facts(self, session):
        self._note("facts")
        return {"kept": self.kept}

    def state_dict(self):
        return {"kept": self.kept}

    def load_state_dict(self, state):
        self.kept = state["kept"]


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def session(*passes: Pass, steps: int = 10, model=None, **options: Any) -> Session:
    return Session(passes, model or tiny.model(), total_steps=steps, **options)
