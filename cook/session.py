"""A recipe bound to a model: the only place where passes meet.

session = Session(passes, model, total_steps=..., steps_per_epoch=...)     attach, in recipe order
optimizer = AdamW(session.module.parameters()); session.bind(optimizer)
for step, batch in enumerate(batches):
    session.before_step(step)
    terms = session.module(batch)           {"task": ..., "logits": ..., ...}, weighted
    sum(terms.values()).backward()
    optimizer.step()                        hard masks are applied here
    session.after_step()
session.finish()                            plain modules again; model.save_pretrained as usual
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from cook.errors import CookError
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.tensors import Tensors
from cook.model.calibration.input_statistics import answered_tokens
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.depth import STAYS, compact, left_out, missing, unreached
from cook.model.edits.edit import Edit
from cook.model.edits.plain import current, settle
from cook.model.edits.removal import Removal
from cook.model.hub.quantizer import attach_quantizer, blueprint_of
from cook.model.nn import sharing
from cook.model.nn.hooks import Hooks
from cook.model.nn.masks import Masks
from cook.model.probe.equivalence import check_folded, outputs, outputs_to_be
from cook.model.probe.example import Unmeasured, first_through, random_examples, small_example
from cook.model.probe.layerdrop import without_layerdrop
from cook.model.tokens.id_map import Renumbering
from cook.passes import PHASES, Pass, Window
from cook.recipe.text.schedule_point import Moment
from cook.steps import Steps
from cook.teacher.teacher import ROWS, Given, Teacher, teachers


class SessionModule(nn.Module):
    """What the optimizer, DDP and autocast see: the model and everything that passes train.

    `forward(batch)` or `forward(**batch)` runs student and teacher and gives the weighted loss terms by name.
    """

    def __init__(self, session: Session):
        super().__init__()
        self.model = session.model
        self.trained = nn.ModuleDict()
        # No module, so neither it nor its teacher is trained or saved.
        self._session = session

    def forward(self, batch: Mapping[str, Tensor] | None = None, **tensors: Tensor) -> dict[str, Tensor]:
        """The weighted loss terms of a batch, given as one mapping or as tensors by name.

        Raises:
            CookError: both are given, neither is, or it is no mapping.
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


class Session:
    """Owns the hooks, masks, teacher and loss terms of one run.

    Args:
        passes: in recipe order.
        model: with a head that returns a loss for a batch with labels; changed in place.
        total_steps: optimizer steps of the run; 0 when nothing trains and one-shot passes act at once.
        steps_per_epoch: optimizer steps of one epoch, for moments in epochs.
        teacher: a model, `"self"` for a copy of the model as it is now, a list of those, or of pairs of one
            and its weight, or None. Teachers are put into eval mode for good, without gradients and with the
            padding token of `model`.
        source: the model that `model` was made from as its student: what `"self"` means then.
        before_attach: called with each pass just before it is attached.
        around: makes the context in which a pass is attached, and again the one in which it finishes; for
            measuring what each of them changes.
        calibration: gives batches of at most so many examples, the same at every call, for passes that
            look at data while nothing trains.
        masks: of `model`, still empty, for somebody who wants to know of them; None makes them.
        tokenizer: of the model's texts, for passes that ask for it; left as it is.
        corpus: gives the texts in some files, or the run's own for None.
        recalled: of a run that goes on, the states that its passes had, by their ids.

    Raises:
        CookError: when a pass needs what is not there, or refuses the model. No hook is left then.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        model: PreTrainedModel,
        *,
        total_steps: int,
        steps_per_epoch: int = 1,
        teacher: Given = None,
        source: PreTrainedModel | None = None,
        before_attach: Callable[[Pass], None] | None = None,
        around: Callable[[Pass], AbstractContextManager[Any]] = nullcontext,
        calibration: Callable[[int], Iterator[Mapping[str, Tensor]]] | None = None,
        masks: Masks | None = None,
        tokenizer: Any | None = None,
        corpus: Callable[[Sequence[str] | None], Iterator[str]] | None = None,
        recalled: Mapping[str, Any] | None = None,
    ):
        self.passes = list(passes)
        self.model = model
        self.total_steps = total_steps
        self.steps_per_epoch = max(1, steps_per_epoch)
        self._around = around
        self._calibration = calibration
        self._corpus = corpus
        self._renumbered = False
        self.tokenizer = tokenizer
        """Of the finished model, once it is finished."""
        self.renumbering: Renumbering | None = None
        """Which tokens stay when the session finishes, and the numbers that they get then; None: all stay."""
        self.hooks = Hooks()
        self.teachers: list[Teacher] = teachers(model, teacher, self.hooks, source)
        self._check_needs()
        self.anatomy = Anatomy(model, [each.anatomy for each in self.teachers])
        self.masks = Masks(model) if masks is None else masks
        self._tensors = Tensors(self.anatomy, self.hooks)
        self.blueprint: Blueprint = blueprint_of(model)
        self.removal = Removal(self.anatomy, self.masks, self.blueprint)
        self._avoidable: list[tuple[Pass, Sequence[str]]] = []
        self.step = 0
        self._steps = Steps()
        self._layerdrop = ExitStack()
        self.learning_rate: float | None = None
        """The largest of the optimizer that is bound, before any schedule."""
        self.batch: Mapping[str, Tensor] = {}
        self.outputs: Any = ModelOutput()
        self.unweighted: dict[str, Tensor] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.module = SessionModule(self)
        try:
            for each in sorted(self.passes, key=lambda each: each.phase != "shape"):
                each.window = self._window(each)
                if before_attach is not None:
                    before_attach(each)
                if recalled is not None:
                    each.recall(recalled[each.id])
                with self._around(each):
                    self._attach(each)
            self._check_left_out()
            for each in self.passes:
                # Before tensors are watched: what a gate lets through is what the next module gets.
                each.open(self)
            self._tensors.open()
            if self._tensors.read:
                self._layerdrop.enter_context(without_layerdrop(self.model))
            for one in self.teachers:
                one.open()
        except BaseException:
            self.close()
            raise

    @property
    def trains(self) -> bool:
        """Whether there is a loop at all."""
        return self.total_steps > 0

    def moment(self, value: str | int, owner: Pass, option: str) -> int:
        """The step that a moment of the recipe stands for.

        Raises:
            CookError: pointing at the option, when it is no moment or lies past the end.
        """
        try:
            return Moment.parse(value).step(self.total_steps, self.steps_per_epoch)
        except CookError as error:
            raise owner.error(error.message, option=option, hint=error.hint) from error

    def examples(self, count: int) -> Iterator[dict[str, Tensor]]:
        """Batches of at most `count` calibration examples on the model's device; the same at every call.

        Only for passes that want `calibration`: there is some then.
        """
        assert self._calibration is not None
        for batch in self._calibration(count):
            read = batch if self.renumbering is None or not self._renumbered else self.renumbering(batch)
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
        self._renumbered, self.tokenizer = True, tokenizer

    def train_also(self, owner: Pass, module: nn.Module) -> nn.Module:
        """Train a module of a pass (projections, gates) with the model; it never becomes part of it.

        Raises:
            ValueError: when the pass has one already.
        """
        name = owner.id.replace(".", "_")
        if name in self.module.trained:
            raise ValueError(f"{owner.id} trains a module already; put both into one")
        self.module.trained[name] = module
        return module

    def bind(self, optimizer: Optimizer) -> None:
        """Apply the hard masks after each step that this optimizer really makes.

        Several optimizers are bound one by one. A wrapper of accelerate is taken for what it wraps.
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no step hooks
        self._steps.bound = True
        self.hooks.after_step(inner, self._stepped)
        rates = [group.get("initial_lr", group["lr"]) for group in inner.param_groups]
        self.learning_rate = max(map(float, rates))

    def place(self, device: torch.device | str) -> None:
        """Move the teachers to the device of the student."""
        for each in self.teachers:
            each.place(device)

    def before_step(self, step: int) -> None:
        """Move every schedule to `step`, counted from 0."""
        self.step = step
        self._steps.begin()
        for each in self.passes:
            each.before_step(self)

    def after_step(self) -> None:
        """To be called after a real optimizer step.

        Raises:
            CookError: `before_step` was not called, or the hard masks were not applied in this step.
        """
        self._steps.check(self.masks)
        for each in self.passes:
            each.after_step(self)
        self._let_go()

    def active(self) -> list[Pass]:
        """The passes whose window holds the present step."""
        return [each for each in self.passes if self.step in each.window]

    def terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One forward of student and, when a pass asks for it, teacher: the weighted loss terms."""
        self.batch = {name: value for name, value in batch.items() if name != ROWS}
        for teacher in self.teachers:
            teacher.meet(batch)
        absent = self._absent()
        with self._tensors.recording(), left_out(self.anatomy, absent):
            self.outputs = self.model(**self.batch)
        if getattr(self.outputs, "loss", None) is None:
            raise CookError(
                "the model returned no loss", hint="give batches with `labels`, and a model with a head"
            )
        task_weight = 1.0
        terms: dict[str, Tensor] = {}
        self.unweighted = {"task": self.outputs.loss.detach()}
        for each in self.active():
            task_weight *= each.task_weight()
            for name, term in each.losses(self).items():
                # A pass used twice keeps its two names apart whether or not both act at this step.
                plain = each.id == each.name and name not in self.unweighted
                unique = name if plain else f"{name} ({each.id})"
                terms[unique] = term.weight * term.value
                self.unweighted[unique] = term.value.detach()
        terms = {"task": task_weight * self.outputs.loss, **terms}
        self._steps.learned |= self.trains and torch.is_grad_enabled()
        trained = [p for p in self.module.trained.parameters() if p.requires_grad]
        if idle := [*trained, *unreached(self.anatomy, absent)]:
            # What is trained and has no part in this loss must still take part, or DDP waits for it for ever.
            terms["task"] = terms["task"] + sum(0.0 * parameter.flatten()[:1].sum() for parameter in idle)
        return terms

    def may_leave_out(self, owner: Pass, layers: Sequence[str]) -> None:
        """Say, when attached, which layers `owner.leaves_out` may name."""
        self._avoidable.append((owner, layers))

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

    def finish(self) -> None:
        """Let every pass leave plain modules behind, by phase; afterwards the session is closed.

        `facts` holds what each pass reached, by its id.

        Raises:
            CookError: a pass cannot finish, or weights that a mask holds at zero are not zero.
            RunError: the finished model gives something else for a small example than before.
        """
        try:
            self._steps.check_all(self.masks)
            self._layerdrop.close()
            if self.step < self.total_steps - 1:
                # The loop ended early: what is due is done before any shape changes.
                self.before_step(self.total_steps)
            expected = self._probed()
            for phase in PHASES:
                for each in self.passes:
                    if each.phase == phase:
                        with self._around(each):
                            each.finish(self)
                        self.facts[each.id] = each.facts(self)
            sharing.check(self.model, self.blueprint.shared)
            self.blueprint = settle(self.model, current(self.model, compact(self.model, self.blueprint)))
            attach_quantizer(self.model, self.blueprint)
            if expected is not None:
                probe, before = expected
                after = outputs(self.model, self.renumbering(probe) if self.renumbering else probe)
                check_folded(before, after, self.model.dtype)
        finally:
            self.close()

    def _probed(self) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """A small example, and what the finished model has to give for it; None where it does not run.

        What leaves is held at zero by now, so a model without it must give the same.
        """
        if not self.passes:
            return None
        with suppress(Unmeasured):
            several = [*random_examples(self.model), small_example(self.model)]
            return first_through(
                several, lambda probe: (probe, outputs_to_be(self.model, probe, self.renumbering))
            )
        return None

    def close(self) -> None:
        """Remove all hooks; the model keeps whatever state it is in."""
        self.hooks.close()
        self._layerdrop.close()
        self._let_go()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """All that must survive an interrupt: tensors and plain values only."""
        return {
            "module": self.module.state_dict(),
            "masks": self.masks.state_dict(),
            "passes": {each.id: each.state_dict() for each in self.passes},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, in a session of the same recipe and model."""
        self.module.load_state_dict(state["module"])
        self.masks.load_state_dict(state["masks"])
        for each in self.passes:
            each.load_state_dict(state["passes"][each.id])

    def _stepped(self) -> None:
        self.masks.apply()
        self._steps.applied = True

    def _absent(self) -> list[str]:
        """The layers that the coming forward does without; evaluations are whole."""
        if not self.model.training:
            return []
        return list(dict.fromkeys(name for each in self.active() for name in each.leaves_out(self)))

    def _check_left_out(self) -> None:
        for owner, layers in self._avoidable:
            if message := missing(self._tensors.read, layers):
                raise owner.error(message, hint=STAYS)

    def _let_go(self) -> None:
        self._tensors.clear()
        for each in self.teachers:
            each.forget()
        self.batch, self.outputs = {}, ModelOutput()

    def _attach(self, each: Pass) -> None:
        try:
            each.attach(self)
        except CookError as error:
            error.where = error.where or each.where
            raise

    def _window(self, each: Pass) -> Window:
        start = self.moment(each.given.get("start", 0), each, "start")
        end = self.moment(each.given.get("end", "100%"), each, "end")
        if end < start:
            raise each.error(f"ends at step {end}, before its start at step {start}", option="end")
        return Window(start, end)

    def _check_needs(self) -> None:
        for each in self.passes:
            wants = each.wants()
            if "training" in wants and not self.trains:
                raise each.error("needs training, and there is none", hint="give it data and a train section")
            if "teacher" in wants and not self.teachers:
                raise each.error("needs a teacher", hint="add `teacher: self`, or the teacher's path")
            if "calibration" in wants and self._calibration is None:
                hint = "give it data, or in Python `calibration=`: batches as the model takes them"
                raise each.error("needs examples to look at, and there are none", hint=hint)
            if "tokenizer" in wants and self.tokenizer is None:
                hint = "name one in model.tokenizer, or in Python give `tokenizer=`"
                raise each.error("needs the model's tokenizer, and there is none", hint=hint)
