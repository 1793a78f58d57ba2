"""Word replacements predicted by a masked language model."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cook.data.augment.words import Flags, Ids, Words, flat
from cook.data.rows import cache
from cook.data.tasks import Task
from cook.data.tasks.text import attention, pad, positions
from cook.errors import CookError
from cook.model.hub import load
from cook.sections import AugmentSection, ModelSection

TOKENS = 2048
"""The number of tokens in a batch, including padding."""


class MaskedWords:
    """The most probable words of the masked language model at `data.augment.model`.

    Args:
        task: for the path and for errors.
        processor: the tokenizer of the rows, which must match the model's.
        words: of that tokenizer.
        count: candidates per word; fewer if the vocabulary has fewer other words.
        device: of the model.

    Attributes:
        identity: the hash of the model's config and weights.

    Raises:
        CookError: there is no such model, it has no masked language modelling head, or its vocabulary is not
            that of the rows.
    """

    def __init__(self, task: Task, processor: Any, words: Words, asked: AugmentSection, device: torch.device):
        self.task, self.words, self.device = task, words, device
        self.count = min(asked.candidates, int(words.whole.sum()) - 1)
        section = ModelSection(path=asked.model)
        self.model = self._load(section)
        self.mask, self.pad = self._tokens(section, processor)
        self.takes_types = "token_type_ids" in inspect.signature(self.model.forward).parameters
        self.identity = cache.of_tensors(self.model.state_dict(), cache.of_config(self.model))
        self._asked = torch.zeros(0)
        if (projection := self.model.get_output_embeddings()) is not None:
            projection.register_forward_pre_hook(self._only_asked)

    def __call__(self, table: pa.Table, where: Flags) -> Ids:
        """Candidates, most probable first, where the flag is set; shape `(set flags, candidates)`.

        All of them are masked at once. A word is no candidate for itself.
        """
        ids, lengths = flat(table["input_ids"])
        self._check_lengths(int(lengths.max()))
        masked = np.where(where, self.mask, ids)
        typed = self.takes_types and "token_type_ids" in table.column_names
        types = flat(table["token_type_ids"])[0] if typed else None
        first = np.cumsum(lengths) - lengths
        slot = np.cumsum(where) - 1  # the row in the result of each set flag
        result = np.full((int(where.sum()), self.count), -1)
        some = np.unique(np.repeat(np.arange(len(lengths)), lengths)[where])
        some = some[np.argsort(-lengths[some], kind="stable")]
        while len(some):
            size = max(1, TOKENS // int(lengths[some[0]]))
            batch, some = some[:size], some[size:]
            tokens = [slice(first[row], first[row] + lengths[row]) for row in batch]
            inputs = {
                "input_ids": pad([masked[place].tolist() for place in tokens], self.pad, "right"),
                "attention_mask": attention(lengths[batch].tolist(), "right"),
            }
            if types is not None:
                inputs["token_type_ids"] = pad([types[place].tolist() for place in tokens], 0, "right")
            asked = pad([where[place].tolist() for place in tokens], False, "right").bool()
            own = np.concatenate([ids[place][where[place]] for place in tokens])
            rows = np.concatenate([slot[place][where[place]] for place in tokens])
            result[rows] = self._best(inputs, asked, torch.from_numpy(own)).numpy()
        return result

    @torch.no_grad()
    def _best(self, inputs: dict[str, Tensor], asked: Tensor, own: Tensor) -> Tensor:
        moved = {name: value.to(self.device) for name, value in inputs.items()}
        self._asked = asked.to(self.device)
        logits = self.model(**moved).logits
        if logits.dim() == 3:  # of a head with its own product instead of a projection module
            logits = logits[self._asked]
        logits = logits.float().cpu()[:, : len(self.words.whole)]
        if bool(logits.isnan().any()):
            raise self._error("what the language model says is not a number", "look at its weights")
        logits[:, ~torch.from_numpy(self.words.whole)] = -torch.inf
        logits[torch.arange(len(own)), own.long()] = -torch.inf
        return logits.topk(self.count).indices

    def _only_asked(self, _: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Skip the projection to the vocabulary, half of the cost, for tokens that are not masked."""
        return (inputs[0][self._asked],)

    def _load(self, section: ModelSection) -> PreTrainedModel:
        model = load.load(
            section,
            auto_class="AutoModelForMaskedLM",
            error=lambda _, message, hint: self._error(message, hint),
        )
        origin = load.origin_of(model)
        if origin.new_head and origin.notes:  # weights missing from the checkpoint are listed in a note
            raise self._error(
                f"{section.path} is no masked language model: its head would start from random weights",
                "use the model as it was pre-trained, before it was fine-tuned",
            )
        return model.to(self.device)  # type: ignore[arg-type]

    def _tokens(self, section: ModelSection, processor: Any) -> tuple[int, int]:
        """The ids of mask and padding tokens, from a tokenizer compatible with that of the rows."""
        tokenizer = load.load_processor(section, "tokenizer")
        if tokenizer is None:
            raise self._error(
                f"{section.path} comes without a tokenizer", "save the model's own in its folder"
            )
        if tokenizer.get_vocab() != processor.get_vocab():
            raise self._error(
                f"the tokenizer of {section.path} ({len(tokenizer)} tokens) differs from the student's "
                f"({len(processor)} tokens)",
                "use a language model of the same tokenizer, or method: neighbours",
            )
        embeddings: Any = self.model.get_input_embeddings()
        known = len(embeddings.weight)
        if known < len(self.words.whole):
            raise self._error(
                f"its tokenizer has ids up to {len(self.words.whole) - 1}, the model knows {known}"
            )
        if tokenizer.mask_token_id is None:
            raise self._error(f"the tokenizer of {section.path} has no mask token", "use method: neighbours")
        return tokenizer.mask_token_id, tokenizer.pad_token_id or 0

    def _check_lengths(self, longest: int) -> None:
        most = positions(self.model.config)
        if most is not None and longest > most:
            raise self._error(
                f"an example has {longest} tokens, the language model takes {most}",
                f"set data.max_length to {most}, or use method: neighbours",
            )

    def _error(self, message: str, hint: str | None = None) -> CookError:
        return self.task.error("data.augment.model", message, hint)
