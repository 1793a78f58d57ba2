"""What a pass is handed: the model of a run, and everything that passes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.tensors import Tensors
from cook.model.calibration.input_statistics import answered_tokens
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.edits.removal import Removal
from cook.model.hub.quantizer import blueprint_of
from cook.model.nn.hooks import Hooks
from cook.model.nn.masks import Masks
from cook.model.probe.batch import ROWS
from cook.model.tokens.id_map import TokenIdMap
from cook.recipe.text.schedule_point import SchedulePoint
from cook.teacher.teacher import Teacher

Examples = Callable[[int], Iterator[Mapping[str, Tensor]]]
Corpus = Callable[[Sequence[str] | None], Iterator[str]]


class Owner(Protocol):
    """The pass that asks for something."""

    id: str

    def error(self, message: str, *, option: str | None = None, hint: str | None = None) -> CookError:
        """A CookError that points at the pass, or at one of its options, in the recipe."""


class Context:
    """A model under compression and what its passes share: hooks, masks, teachers, tensors, examples.

    Args:
        model: changed in place.
        total_steps: optimizer steps of the run; 0 when nothing trains.
        steps_per_epoch: optimizer steps of one epoch, for schedule points in epochs.
        hooks: on the model and its teachers; removed when the session is closed.
        teachers: that the passes can learn from.
        masks: of `model`; None makes them.
        calibration: gives batches of at most so many examples, the same at every call; None: there are none.
        tokenizer: of the model's texts; None: there is none.
        corpus: gives the texts in some files, or the run's own for None.

    Attributes:
        anatomy: where the parts of the model are.
        removal: takes units and layers out of the model.
        blueprint: the structural edits so far.
        step: of the run, from 0.
        learning_rate: the largest of the bound optimizers, before any schedule; None before that.
        batch, outputs: of the present forward.
        trained: modules that are trained beside the model, by the ids of their passes.
        token_id_map: which tokens stay when the session finishes, and the ids that they get; None: all stay.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        total_steps: int,
        steps_per_epoch: int,
        hooks: Hooks,
        teachers: list[Teacher],
        masks: Masks | None = None,
        calibration: Examples | None = None,
        tokenizer: Any | None = None,
        corpus: Corpus | None = None,
    ):
        self.model = model
        self.total_steps = total_steps
        self.steps_per_epoch = max(1, steps_per_epoch)
        self.hooks, self.teachers = hooks, teachers
        self.anatomy = Anatomy(model, [each.anatomy for each in teachers])
        self.masks = Masks(model) if masks is None else masks
        self.blueprint: Blueprint = blueprint_of(model)
        self.removal = Removal(self.anatomy, self.masks, self.blueprint)
        self.tokenizer = tokenizer
        self.token_id_map: TokenIdMap | None = None
        self.step = 0
        self.learning_rate: float | None = None
        self.batch: Mapping[str, Tensor] = {}
        self.outputs: Any = ModelOutput()
        self.trained = nn.ModuleDict()
        self._tensors = Tensors(self.anatomy, hooks)
        self._calibration, self._corpus = calibration, corpus
        self._ids_mapped = False
        self._owners: Sequence[Owner] = ()
        self._skippable: list[tuple[Owner, Sequence[str]]] = []

    @property
    def trains(self) -> bool:
        """Whether there is a loop at all."""
        return self.total_steps > 0

    def is_last(self, owner: Owner) -> bool:
        """Whether no pass of the recipe comes after this one."""
        return bool(self._owners) and self._owners[-1] is owner

    def schedule_step(self, value: str | int, owner: Owner, option: str) -> int:
        """The step that a schedule point of the recipe stands for.

        Raises:
            CookError: pointing at the option, when it is no schedule point or lies past the end.
        """
        try:
            return SchedulePoint.parse(value).step(self.total_steps, self.steps_per_epoch)
        except CookError as error:
            raise owner.error(error.message, option=option, hint=error.hint) from error

    def examples(self, count: int) -> Iterator[dict[str, Tensor]]:
        """Batches of at most `count` calibration examples on the model's device; the same at every call.

        Only for passes that want `calibration`: there is some then.
        """
        assert self._calibration is not None
        for batch in self._calibration(count):
            read = batch if self.token_id_map is None or not self._ids_mapped else self.token_id_map(batch)
            yield {name: value.to(self.model.device) for name, value in read.items() if name != ROWS}

    def inputs(self) -> Iterator[dict[str, Tensor]]:
        """An example that the model takes, of those for calibration; none where there are none."""
        return iter(()) if self._calibration is None else self.examples(1)

    def texts(self, files: Sequence[str] | None) -> Iterator[str]:
        """The texts in some files, or those that the run trains and is evaluated on; none without data.

        Raises:
            CookError: a file cannot be read.
        """
        return iter(()) if self._corpus is None else self._corpus(files)

    def renumber(self, tokenizer: Any) -> None:
        """The tokens have their new numbers from now on, by this tokenizer."""
        self._ids_mapped, self.tokenizer = True, tokenizer

    def train_also(self, owner: Owner, module: nn.Module) -> nn.Module:
        """Train a module of a pass (projections, gates) with the model; it never becomes part of it.

        Raises:
            ValueError: when the pass has one already.
        """
        name = owner.id.replace(".", "_")
        if name in self.trained:
            raise ValueError(f"{owner.id} trains a module already; put both into one")
        self.trained[name] = module
        return module

    def may_skip(self, owner: Owner, layers: Sequence[str]) -> None:
        """Say, when attached, which layers `owner.skipped_layers` may name."""
        self._skippable.append((owner, layers))

    def watch(self, name: str) -> None:
        """Ask for a tensor inside of the model (`cook.model.arch.tensors` has the names), when attached.

        Raises:
            CookError: the name means nothing in this model.
        """
        self._tensors.watch(name)

    def tensor(self, name: str) -> Tensor:
        """A watched tensor, of this forward and with its gradient."""
        return self._tensors[name]

    def valid_tokens(self, like: Tensor, name: str) -> Tensor:
        """Which tokens of a watched tensor are not padding: bool [batch, tokens].

        Args:
            like: [batch, tokens, ...] or [batch, heads, tokens, width], for batches without padding.
            name: of the tensor: inside of a decoder after an encoder the answer's tokens count.
        """
        decodes = self.anatomy.decodes(name)
        mask = answered_tokens(self.batch) if decodes else self.batch.get("attention_mask")
        if mask is None:
            return torch.ones_like(like[..., 0], dtype=torch.bool)
        if mask.ndim == 3 and len(like) == mask.shape[0] * mask.shape[1]:
            mask = mask.flatten(0, 1)  # of multiple choice, whose model takes each choice for an example
        tokens = like.shape[0], like.shape[-2 if like.ndim == 4 else 1]
        if like.ndim > 2 and mask.shape != tokens:
            raise CookError(
                f"which tokens of {name} are padding is not known: it has {tokens} of them by example, the"
                f" batch's mask {tuple(mask.shape)}",
                hint="learn from tensors of batches without padding, or without a mask",
            )
        return mask.bool()

    def attended(self, like: Tensor, name: str, other: tuple[Anatomy, str] | None = None) -> Tensor:
        """Which tokens the valid ones may attend to in the layer of a tensor: bool [batch, tokens, tokens].

        Args:
            like: [batch, tokens, ...], for batches without padding.
            name: of the tensor. Layers of one model may differ in how far they look.
            other: the model and the name of a tensor that it is compared with: what only one of the two
                attends to does not count.
        """
        valid = self.valid_tokens(like, name)
        allowed = self.anatomy.attends(name, valid.shape[-1])
        if other is not None:
            anatomy, theirs = other
            allowed &= anatomy.attends(theirs, valid.shape[-1])
        return valid[:, :, None] & valid[:, None, :] & allowed.to(valid.device)

    def edit(self, edit: Edit) -> None:
        """Enter a structural edit, already made, into the blueprint."""
        self.blueprint.append(edit)

    def agreed(self, value: Tensor) -> Tensor:
        """What the first process has, in all of them: on GPUs equal sums may end in other last digits."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shared = value.to(self.model.device)
            torch.distributed.broadcast(shared, 0)
            return shared
        return value

    def maximum(self, value: Tensor) -> Tensor:
        """The largest value over all processes, entry by entry."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shared = value.clone()
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            return shared
        return value
