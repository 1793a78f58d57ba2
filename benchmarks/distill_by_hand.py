"""Distillation as a careful person writes it in a training script, without cook.

One forward of the teacher without gradients, hidden states from `output_hidden_states`, queries, keys and
values from hooks on their projections, scores as their products, so that attention stays the fast one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertForSequenceClassification

STUDENT, TEACHER, HEADS, WIDTH = 3, 6, 12, 384
"""Layers of the one and the other, and what they have in common."""
TEMPERATURE = 2.0

Losses = dict[str, Tensor]


class Seen(NamedTuple):
    """What a forward gave.

    Attributes:
        states: the embeddings, and the output of each layer.
        inner: of the watched layers, what the projections gave, by (layer, name).
    """

    logits: Tensor
    states: Sequence[Tensor]
    inner: dict[tuple[int, str], Tensor]

    def heads(self, layer: int, name: str) -> Tensor:
        """[batch, heads, tokens, head width]."""
        return self.inner[layer, name].unflatten(-1, (HEADS, -1)).transpose(1, 2)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over examples of the mean over their tokens; both [batch, tokens]."""
    return ((values * mask).sum(1) / mask.sum(1)).mean()


def logits(student: Seen, teacher: Seen, mask: Tensor, projection: nn.Module) -> Losses:
    guess = functional.log_softmax(student.logits / TEMPERATURE, dim=-1)
    wanted = functional.softmax(teacher.logits / TEMPERATURE, dim=-1)
    return {"logits": TEMPERATURE**2 * functional.kl_div(guess, wanted, reduction="batchmean")}


def patient(student: Seen, teacher: Seen, mask: Tensor, projection: nn.Module) -> Losses:
    """Layers 0 and 1 learn the first token's direction from 1 and 3."""
    total = torch.zeros((), device=mask.device)
    for mine, theirs in ((1, 2), (2, 4)):
        guess = functional.normalize(student.states[mine][:, 0], dim=-1)
        wanted = functional.normalize(teacher.states[theirs][:, 0], dim=-1)
        total = total + functional.mse_loss(guess, wanted)
    return {"patient": total / 2}


def tinybert(student: Seen, teacher: Seen, mask: Tensor, projection: nn.Module) -> Losses:
    """Layers 0, 1, 2 learn from 1, 3, 5, states through one matrix."""

    def apart(mine: int, theirs: int) -> Tensor:
        return token_mean((projection(student.states[mine]) - teacher.states[theirs]).square().mean(-1), mask)

    seen = (mask[:, :, None] * mask[:, None, :]).flatten(1)
    scores = []
    for mine, theirs in ((0, 1), (1, 3), (2, 5)):
        one, other = (
            which.heads(layer, "query") @ which.heads(layer, "key").transpose(-1, -2)
            for which, layer in ((student, mine), (teacher, theirs))
        )
        squares = (one - other).square().mean(1) / student.heads(mine, "key").shape[-1]
        scores.append(token_mean(squares.flatten(1), seen))
    return {
        "embeddings": apart(0, 0),
        "hidden states": (apart(1, 2) + apart(2, 4) + apart(3, 6)) / 3,
        "attention scores": (scores[0] + scores[1] + scores[2]) / 3,
    }


def minilm(student: Seen, teacher: Seen, mask: Tensor, projection: nn.Module) -> Losses:
    """Relations of queries, keys and values in the last layers."""
    hidden = (1 - mask)[:, None, None, :] * torch.finfo(torch.float32).min
    losses = {}
    for name, called in (("query", "queries"), ("key", "keys"), ("value", "values")):
        logs = []
        for which, layer in ((student, STUDENT - 1), (teacher, TEACHER - 1)):
            vectors = which.heads(layer, name)
            products = vectors @ vectors.transpose(-1, -2) / math.sqrt(vectors.shape[-1])
            logs.append(functional.log_softmax(products + hidden, dim=-1))
        apart = functional.kl_div(logs[0], logs[1], reduction="none", log_target=True)
        losses[called] = token_mean(apart.sum(-1).mean(1), mask)
    return losses


def hidden(student: Seen, teacher: Seen, mask: Tensor, projection: nn.Module) -> Losses:
    """The outputs of layers 0, 1, 2 learn from 1, 3, 5."""
    pairs = ((1, 2), (2, 4), (3, 6))
    apart = [(student.states[mine] - teacher.states[theirs]).square().mean(-1) for mine, theirs in pairs]
    return {"hidden": sum((token_mean(each, mask) for each in apart), mask.new_zeros(())) / len(pairs)}


class Method(NamedTuple):
    """A pass and what replaces it.

    Attributes:
        options: of the pass.
        by_hand: (student, teacher, mask [batch, tokens], projection) -> losses by the names of the terms.
        states: whether hidden states are asked for.
        watched: layers of the student and of the teacher whose projections are hooked.
        projects: whether the matrix is trained.
    """

    options: dict[str, Any]
    by_hand: Callable[[Seen, Seen, Tensor, nn.Module], Losses]
    states: bool = False
    watched: tuple[Sequence[int], Sequence[int]] = ((), ())
    projects: bool = False


METHODS = {
    "distill.logits": Method({"temperature": TEMPERATURE}, logits),
    "distill.patient": Method({}, patient, states=True),
    "distill.tinybert": Method({}, tinybert, states=True, watched=((0, 1, 2), (1, 3, 5)), projects=True),
    "distill.minilm": Method({}, minilm, watched=((STUDENT - 1,), (TEACHER - 1,))),
    "distill.hidden": Method(
        {"map": {f"layers[{one}].output": f"layers[{2 * one + 1}].output" for one in range(STUDENT)}},
        hidden,
        states=True,
    ),
}


class ByHand(nn.Module):
    """A student with the losses of a method, and its projection if there is one."""

    def __init__(
        self, name: str, student: BertForSequenceClassification, teacher: BertForSequenceClassification
    ):
        super().__init__()
        self.method = METHODS[name]
        self.student, self.teach = student, teacher.eval().requires_grad_(False).forward  # not a part of this
        self.projection: nn.Module = nn.Identity()
        if self.method.projects:
            self.projection = nn.Linear(WIDTH, WIDTH, bias=False)
            nn.init.eye_(self.projection.weight)
        mine, theirs = self.method.watched
        self.mine, self.theirs = watch(student, mine), watch(teacher, theirs)

    def forward(self, batch: dict[str, Tensor]) -> Losses:
        """The losses by name, the task's among them."""
        states = self.method.states
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            taught = self.teach(**inputs, output_hidden_states=states)
        told = self.student(**batch, output_hidden_states=states)
        mask = batch["attention_mask"].float()
        seen = Seen(told.logits, told.hidden_states, self.mine)
        wanted = Seen(taught.logits, taught.hidden_states, self.theirs)
        return {"task": told.loss, **self.method.by_hand(seen, wanted, mask, self.projection)}


def watch(model: BertForSequenceClassification, layers: Sequence[int]) -> dict[tuple[int, str], Tensor]:
    """Hook the projections of some layers; what they give is in the result after each forward."""
    kept: dict[tuple[int, str], Tensor] = {}

    def keep(key: tuple[int, str], module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept[key] = output

    for layer in layers:
        for name in ("query", "key", "value"):
            projection = model.get_submodule(f"bert.encoder.layer.{layer}.attention.self.{name}")
            projection.register_forward_hook(partial(keep, (layer, name)))
    return kept
