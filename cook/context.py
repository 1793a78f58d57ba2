"""The context of passes: the model of a run, and everything that passes share."""

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
    """The pass that makes a request."""

    id: str

    def error(self, message: str, *, option: str | None = None, hint: str | None = None) -> CookError:
        """A CookError that points at the pass, or at one of its options, in the recipe."""


class Context:
    """A model under compression and the shared state of passes: hooks, masks, teachers, tensors, examples.

    Args:
        model: changed in place.
        total_steps: optimizer steps of the run; 0 without training.
        steps_per_epoch: optimizer steps of one epoch, for schedule points in epochs.
        hooks: on the model and its teachers; removed when the session is closed.
        teachers: the teachers available to the passes.
        masks: of `model`; None creates them.
        calibration: returns batches with at most the given number of examples, always the same; or None.
        tokenizer: of the model's texts, or None.
        corpus: returns the texts of given files, or those of the run for None.

    Attributes:
        anatomy: locates the parts of the model.
        removal: removes units and layers from the model.
        blueprint: the structural edits so far.
        step: of the run, from 0.
        learning_rate: the largest of the bound optimizers, before any schedule; None until one is bound.
        batch, outputs: of the current forward.
        trained: modules trained together with the model, by the ids of their passes.
        token_id_map: the tokens kept when the session finishes, and their new ids; None: all are kept.
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
        """Whether the run trains at all."""
        return self.total_steps > 0

    def is_last(self, owner: Owner) -> bool:
        """Whether this pass is the last one of the recipe."""
        return bool(self._owners) and self._owners[-1] is owner

    def schedule_step(self, value: str | int, owner: Owner, option: str) -> int:
        """The step of a schedule point in the recipe.

        Raises:
            CookError: the option is not a schedule point, or lies past the end; the error points at it.
        """
        try:
            return SchedulePoint.parse(value).step(self.total_steps, self.steps_per_epoch)
        except CookError as error:
            raise owner.error(error.message, option=option, hint=error.hint) from error

    def examples(self, count: int) -> Iterator[dict[str, Tensor]]:
        """Batches of at most `count` calibration examples on the model's device; the same at every call.

        Only for passes that declare `calibration`, for which examples are guaranteed.
        """
        assert self._calibration is not None
        for batch in self._calibration(count):
            read = batch if self.token_id_map is None or not self._ids_mapped else self.token_id_map(batch)
            yield {name: value.to(self.model.device) for name, value in read.items() if name != ROWS}

    def inputs(self) -> Iterator[dict[str, Tensor]]:
        """An example batch from the calibration examples; none without these."""
        return iter(()) if self._calibration is None else self.examples(1)

    def texts(self, files: Sequence[str] | None) -> Iterator[str]:
        """The texts of some files, or those of the run's training and evaluation data; none without data.

        Raises:
            CookError: a file cannot be read.
        """
        return iter(()) if self._corpus is None else self._corpus(files)

    def renumber(self, tokenizer: Any) -> None:
        """Declare that token ids are renumbered from now on, according to this tokenizer."""
        self._ids_mapped, self.tokenizer = True, tokenizer

    def train_also(self, owner: Owner, module: nn.Module) -> nn.Module:
        """Train a module of a pass (projections, gates) with the model, without adding it to the model.

        Raises:
            ValueError: the pass already has one.
        """
        name = owner.id.replace(".", "_")
        if name in self.trained:
            raise ValueError(f"{owner.id} trains a module already; put both into one")
        self.trained[name] = module
        return module

    def may_skip(self, owner: Owner, layers: Sequence[str]) -> None:
        """Declare, when attached, the layers that `owner.skipped_layers` may name."""
        self._skippable.append((owner, layers))

    def watch(self, name: str) -> None:
        """Register a tensor inside the model to watch (names as in `cook.model.arch.tensors`), when attached.

        Raises:
            CookError: the name is unknown in this model.
        """
        self._tensors.watch(name)

    def tensor(self, name: str) -> Tensor:
        """A watched tensor of the current forward, with its gradient."""
        return self._tensors[name]

    def valid_tokens(self, like: Tensor, name: str) -> Tensor:
        """Which tokens of a watched tensor are not padding: bool [batch, tokens].

        Args:
            like: [batch, tokens, ...] or [batch, heads, tokens, width], for batches without padding.
            name: of the tensor: inside the decoder of an encoder-decoder, the decoder's tokens are used.
        """
        decodes = self.anatomy.decodes(name)
        mask = answered_tokens(self.batch) if decodes else self.batch.get("attention_mask")
        if mask is None:
            return torch.ones_like(like[..., 0], dtype=torch.bool)
        if mask.ndim == 3 and len(like) == mask.shape[0] * mask.shape[1]:
            mask = mask.flatten(0, 1)  # of multiple choice, where the model treats each choice as an example
        tokens = like.shape[0], like.shape[-2 if like.ndim == 4 else 1]
        if like.ndim > 2 and mask.shape != tokens:
            raise CookError(
                f"which tokens of {name} are padding is not known: it has {tokens} of them by example, the"
                f" batch's mask {tuple(mask.shape)}",
                hint="learn from tensors of batches without padding, or without a mask",
            )
        return mask.bool()

    def attended(self, like: Tensor, name: str, other: tuple[Anatomy, str] | None = None) -> Tensor:
        """Which tokens the valid ones may attend to in a tensor's layer: bool [batch, tokens, tokens].

        Args:
            like: [batch, tokens, ...], for batches without padding.
            name: of the tensor. Attention windows may differ between layers of a model.
            other: the model and name of a tensor to compare with: positions that only one of the two attends
                to are excluded.
        """
        valid = self.valid_tokens(like, name)
        allowed = self.anatomy.attends(name, valid.shape[-1])
        if other is not None:
            anatomy, other_name = other
            allowed &= anatomy.attends(other_name, valid.shape[-1])
        return valid[:, :, None] & valid[:, None, :] & allowed.to(valid.device)

    def edit(self, edit: Edit) -> None:
        """Record a structural edit, already applied, in the blueprint."""
        self.blueprint.append(edit)

    def agreed(self, value: Tensor) -> Tensor:
        """The first process's value, in all of them: equal sums on GPUs may differ in the last digits."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shared = value.to(self.model.device)
            torch.distributed.broadcast(shared, 0)
            return shared
        return value

    def maximum(self, value: Tensor) -> Tensor:
        """The elementwise maximum over all processes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shared = value.clone()
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            return shared
        return value
