"""What models say of their own insides, in float64: the references of the intermediate losses.

Nothing of cook looks into them: hidden states are those of `output_hidden_states`, scores are made of the
queries and keys that the model's eager attention gets, and agree with the attentions that it gives.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cook.session import Session
from tests.helpers import tiny

FINAL_NORMS = {"gpt2": "transformer.ln_f", "llama": "model.norm", "vit": "vit.layernorm"}
CAUSAL = {"gpt2", "llama"}


@dataclass
class Own:
    """One forward of a copy of a model.

    Attributes:
        model: the copy, in float64, whose parameters get the gradients.
        states: what the first layer gets, then what each layer gives: [batch, tokens, width].
        scores: of each layer, before mask and softmax: [batch, heads, tokens, tokens].
        seen: whether a token attends to another one, bool [batch, tokens, tokens].
    """

    model: PreTrainedModel
    states: list[Tensor]
    scores: list[Tensor]
    seen: list[list[list[bool]]]

    @property
    def valid(self) -> list[list[int]]:
        """The tokens of each example that are no padding."""
        return [[token for token, row in enumerate(rows) if any(row)] for rows in self.seen]


def look(model: PreTrainedModel, batch: dict[str, Tensor], family: str, patch: Any) -> Own:
    """Run a copy of `model` on the batch.

    Args:
        patch: pytest's monkeypatch.
    """
    model = copy.deepcopy(model).double().eval().requires_grad_(True)
    model.set_attn_implementation("eager")
    if family in FINAL_NORMS:  # the last hidden state would be the one after it
        parent, _, name = FINAL_NORMS[family].rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
    home = sys.modules[type(model).__module__]
    original, scores = home.eager_attention_forward, []

    def watched(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
    ) -> Any:
        groups = query.shape[1] // key.shape[1]
        keys = [key[:, head // groups] for head in range(query.shape[1])]
        scale = named.get("scaling") or query.shape[-1] ** -0.5
        products = [query[:, head] @ own.transpose(1, 2) * scale for head, own in enumerate(keys)]
        scores.append(torch.stack(products, 1))
        # Llama's softmax is in float32, where the least float64 is -inf, and a row of padding would be NaN.
        mask = None if mask is None else mask.clamp(min=-1e30)
        return original(module, query, key, value, mask, **named)

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if family == "vit":
        inputs["pixel_values"] = inputs["pixel_values"].double()
    with patch.context() as patched:
        patched.setattr(home, "eager_attention_forward", watched)
        told = model(**inputs, output_hidden_states=True, output_attentions=True)
    size, tokens = told.hidden_states[0].shape[:2]
    mask = batch.get("attention_mask", torch.ones(size, tokens)).tolist()
    everywhere = range(tokens)
    seen = [
        [
            [bool(row[one] and row[other] and (family not in CAUSAL or other <= one)) for other in everywhere]
            for one in everywhere
        ]
        for row in mask
    ]
    rows = torch.tensor(seen).any(-1)
    for found, attention in zip(scores, told.attentions, strict=True):
        expected = found.masked_fill(~torch.tensor(seen)[:, None], -1e300).softmax(-1)
        torch.testing.assert_close(
            expected.transpose(1, 2)[rows], attention.transpose(1, 2)[rows], rtol=1e-6, atol=1e-7
        )
    return Own(model, list(told.hidden_states), scores, seen)


def batch(family: str, side: str = "right") -> dict[str, Tensor]:
    """Two full examples and two padded ones; padding holds tokens too, which must not matter."""
    made = tiny.batch(family)
    if family != "vit":
        if side == "left":
            made = {name: value.flip(1) if value.dim() == 2 else value for name, value in made.items()}
        # The head of a decoder looks for the padding token, so only what is before may be anything.
        if family == "bert":
            made["input_ids"] = made["input_ids"].masked_fill(made["attention_mask"] == 0, 9)
    return made


def same_gradients(session: Session, own: Own, found: Tensor, expected: Tensor) -> None:
    """What a term tells the student's parameters is what the reference tells those of the copy."""
    wanted = dict(own.model.named_parameters())
    theirs = torch.autograd.grad(expected, list(wanted.values()), allow_unused=True, retain_graph=True)
    mine = dict(session.model.named_parameters())
    ours = torch.autograd.grad(found, [mine[name] for name in wanted], allow_unused=True, retain_graph=True)
    assert any(each is not None and each.abs().max() > 1e-6 for each in theirs)
    for name, one, other in zip(wanted, ours, theirs, strict=True):
        one, other = (torch.zeros(()) if each is None else each for each in (one, other))
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=2e-6, msg=name)


def joined(*batches: dict[str, Tensor]) -> dict[str, Tensor]:
    """Several batches as one."""
    return {name: torch.cat([each[name] for each in batches]) for name in batches[0]}


def padded(given: dict[str, Tensor], more: int) -> dict[str, Tensor]:
    """The batch with more padding behind."""
    behind = torch.zeros(len(given["labels"]), more, dtype=torch.long)
    return {name: torch.cat([v, behind], 1) if v.dim() == 2 else v for name, v in given.items()}


def cut(given: dict[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """Some of its examples."""
    return {name: value[start:end] for name, value in given.items()}


def same_in_parts_and_padded(session: Session, inputs: dict[str, Tensor]) -> None:
    """The terms of a batch of five are the mean of those of its parts, and do not see more padding."""

    def terms(batch: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(term.detach()) for name, term in session.module(batch).items()}

    whole = terms(inputs)
    one, other = terms(cut(inputs, 0, 2)), terms(cut(inputs, 2, 5))
    assert {name: (2 * one[name] + 3 * other[name]) / 5 for name in one} == pytest.approx(whole, rel=1e-4)
    if "input_ids" in inputs:
        assert terms(padded(inputs, 3)) == pytest.approx(whole, rel=1e-4)
