"""Passes bound to tiny models: the shortest way from options to a session in a test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cook.passes import Pass
from cook.pipeline.inputs import make_passes
from cook.recipe import load_recipe
from cook.session import Session
from tests.helpers import tiny


def passes(*items: Any) -> list[Pass]:
    """The passes of a recipe that lists `items`."""
    return make_passes(load_recipe({"version": 1, "passes": list(items)}, partial=True))


def session(model: PreTrainedModel, *items: Any, steps: int = 10, **options: Any) -> Session:
    """A session of `model` with the passes `items`."""
    return Session(passes(*items), model, total_steps=steps, **options)


def train(bound: Session, family: str = "bert", *, rate: float = 0.01) -> list[dict[str, Tensor]]:
    """Train to the end of the run with AdamW, a batch a step; returns each step's terms."""
    bound.module.train()
    told = list(steps(bound, bound.total_steps, family, rate=rate))
    bound.module.eval()
    return told


def steps(
    bound: Session, count: int, family: str = "bert", *, rate: float = 0.01
) -> Iterator[dict[str, Tensor]]:
    """So many steps with AdamW in whatever mode the model is, a batch a step; gives the terms of each."""
    optimizer = torch.optim.AdamW(bound.module.parameters(), lr=rate)
    bound.bind(optimizer)
    for step in range(count):
        bound.before_step(step)
        terms = bound.module(tiny.batch(family, seed=step))
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        bound.after_step()
        yield {name: value.detach() for name, value in terms.items()}


@torch.no_grad()
def logits(model: PreTrainedModel, family: str = "bert") -> Tensor:
    """What a model in eval mode says about one batch."""
    return model.eval()(**tiny.batch(family, seed=99)).logits
