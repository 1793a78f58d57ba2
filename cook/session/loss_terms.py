"""The loss of a forward: the model's own and the weighted terms of passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cook.context import Context
from cook.errors import CookError
from cook.model.edits.depth import unreached
from cook.passes import Pass

if TYPE_CHECKING:
    from cook.session.session import Session


class SessionModule(nn.Module):
    """The module for optimizer, DDP and autocast: the model and everything that passes train.

    `forward(batch)` or `forward(**batch)` runs student and teacher; returns the weighted loss terms by name.
    """

    def __init__(self, session: Session):
        super().__init__()
        self.model = session.model
        self.trained = session.trained
        # Not registered as a submodule, so neither it nor its teacher is trained or saved.
        self._session = session

    def forward(self, batch: Mapping[str, Tensor] | None = None, **tensors: Tensor) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, given as one mapping or as tensors by name.

        Raises:
            CookError: both or neither are given, or the batch is not a mapping.
        """
        if batch is not None and tensors:
            message = f"a batch and {', '.join(tensors)} beside it"
            raise CookError(message, where="session.module", hint="put all tensors into one mapping")
        given = tensors if batch is None else batch
        if not isinstance(given, Mapping) or not given:
            found = "nothing" if batch is None else f"a {type(batch).__name__}"
            message = f"found {found}, expected a batch: tensors by name"
            raise CookError(message, where="session.module", hint="session.module(batch) or (**batch)")
        return self._session.terms(given)


def loss_terms(context: Context, passes: Sequence[Pass]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The loss terms of the current forward by name: weighted, and detached without weights.

    Args:
        context: contains the outputs of the forward.
        passes: the passes active at this step.

    Raises:
        CookError: the model returned no loss.
    """
    if getattr(context.outputs, "loss", None) is None:
        raise CookError(
            "the model returned no loss", hint="give batches with `labels`, and a model with a head"
        )
    task_weight = 1.0
    terms: dict[str, Tensor] = {}
    unweighted = {"task": context.outputs.loss.detach()}
    for each in passes:
        task_weight *= each.task_weight()
        for name, term in each.losses(context).items():
            # A pass used twice has two distinct names, whether or not both are active at this step.
            plain = each.id == each.name and name not in unweighted
            unique = name if plain else f"{name} ({each.id})"
            terms[unique] = term.weight * term.value
            unweighted[unique] = term.value.detach()
    return {"task": task_weight * context.outputs.loss, **terms}, unweighted


def reach_all(context: Context, loss: Tensor, skipped: Sequence[str]) -> Tensor:
    """Make `loss` depend on every trained parameter: DDP waits for the gradient of each.

    Args:
        skipped: the layers skipped in the forward.
    """
    trained = [each for each in context.trained.parameters() if each.requires_grad]
    idle = [*trained, *unreached(context.anatomy, skipped)]
    return loss + sum(0.0 * each.flatten()[:1].sum() for each in idle) if idle else loss
