"""Whether the logits of a token predict its own label or the next, determined from the model's loss.

Some classes compare the logits of a token with the next token's label, others with the label of the token
itself, and their names do not show which: `MBartForCausalLM` does not shift its labels,
`XLMRobertaForCausalLM` and `Gemma3ForConditionalGeneration` do. So it is derived from a real forward's loss.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from cook.errors import CookError

IGNORED = -100
"""The label value that losses ignore."""

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def predicts_next(model: nn.Module, outputs: Any, labels: Tensor | None) -> bool:
    """Whether the logits of a token predict the next token. Determined once per model.

    Args:
        model: that computed the outputs.
        outputs: of one forward with labels: `loss`, a scalar, and `logits`, [batch, tokens, classes].
        labels: [batch, tokens], with -100 for ignored tokens.

    Returns:
        False if logits or labels are not per token, or there are no labels.

    Raises:
        CookError: the loss matches neither alignment.
    """
    if model in _known:
        return _known[model]
    logits = outputs.logits
    if labels is None or logits.ndim != 3 or labels.ndim != 2:
        return False
    labels = beside(labels, logits)
    if labels.shape != logits.shape[:2] or not (labels[:, 1:] != IGNORED).any():
        return False
    found = by_value(outputs.loss, logits, labels)
    if found is None:
        found = by_gradient(outputs.loss, logits, labels)
    if found is None:
        raise CookError(
            f"the loss of a {type(model).__name__} fits neither the label of each token nor the next one's",
            hint="distill.hidden learns tensors inside of the model; prune.heads and prune.neurons take"
            " `importance: magnitude`, lowrank.linear `method: data`",
        )
    _known[model] = found
    return found


@torch.no_grad()
def by_value(loss: Tensor, logits: Tensor, labels: Tensor) -> bool | None:
    """Compare the loss with the mean cross-entropy of both alignments; None if that is inconclusive.

    One example at a time: a copy of all logits over a large vocabulary may not fit into memory.
    """
    totals = {True: 0.0, False: 0.0}
    counts = {True: 0, False: 0}
    for rows, own in zip(logits, labels.to(logits.device), strict=True):
        normalizers = rows.float().logsumexp(-1)
        for shift in (True, False):
            about, given, mass = (own[1:], rows[:-1], normalizers[:-1]) if shift else (own, rows, normalizers)
            labelled = about != IGNORED
            picked = given.gather(-1, about.where(labelled, 0)[:, None])[:, 0].float()
            totals[shift] += float((mass - picked)[labelled].double().sum())
            counts[shift] += int(labelled.sum())
    means = {shift: totals[shift] / max(1, counts[shift]) for shift in totals}
    apart = abs(means[True] - means[False])
    off = {shift: abs(float(loss) - mean) for shift, mean in means.items()}
    nearest = off[True] <= off[False]
    decided = apart > 1e-4 * max(1.0, abs(float(loss))) and off[nearest] < 0.02 * apart
    return nearest if decided else None


def by_gradient(loss: Tensor, logits: Tensor, labels: Tensor) -> bool | None:
    """Compare the rows of logits that the loss depends on with both alignments; None if neither matches.

    For losses that are not a plain mean: label smoothing, further terms. The graph of the forward is kept.
    """
    if not (loss.requires_grad and logits.requires_grad):
        return None
    slope: Any = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)[0]
    if slope is None:
        return None
    labelled = (labels != IGNORED).to(slope.device)
    shifted = torch.zeros_like(labelled)
    shifted[:, :-1] = labelled[:, 1:]
    read = slope.abs().amax(-1) > 0
    fits = {True: torch.equal(read, shifted), False: torch.equal(read, labelled)}
    return by_class(slope, labels) if fits[True] == fits[False] else fits[True]


def by_class(slope: Tensor, labels: Tensor) -> bool | None:
    """Compare the classes whose logits the loss increases with the labels; None if that is inconclusive.

    For losses that ignore further rows, by an attention mask.

    Args:
        slope: gradient of the loss with respect to the logits: negative for the label's class.
    """
    read = slope.abs().amax(-1) > 0
    labels, wanted = labels.to(slope.device), slope.argmin(-1)
    shifted = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    fits = {
        shift: bool((about[read] == wanted[read]).float().mean() > 0.9)
        for shift, about in ((True, shifted), (False, labels))
    }
    return None if fits[True] == fits[False] else fits[True]


def beside(values: Tensor, logits: Tensor, missing: int = IGNORED) -> Tensor:
    """Align values of tokens with rows of logits: those of a prefix, as of an image, are `missing`.

    Args:
        values: [batch, tokens].
        logits: [batch, rows, classes]; a model that prepends a prefix to the tokens has more rows.
    """
    before = logits.shape[1] - values.shape[1]
    return functional.pad(values, (before, 0), value=missing) if before > 0 else values
