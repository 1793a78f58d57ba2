"""What a step costs in a training loop, against the same model stepped by others.

    python -m benchmarks.loop

The model is MiniLM's shape, a BERT of 6 layers and width 384 with random weights; every loop draws the
same batches of 32 sequences of 64 tokens in the same order, and does the same work on each: forward,
backward, clipping at 1, AdamW with weight decay on the matrices, a linear schedule. The loops take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, default_collate
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from benchmarks.pairs import ROUNDS, machine, measure, ratio, table
from benchmarks.turns import Loop

BATCH, LENGTH, STEPS = 32, 64, 10_000
LEARNING_RATE, WEIGHT_DECAY = 5e-5, 0.01
BY_HAND, AGAIN, TRAINER = "by hand", "by hand, again", "transformers.Trainer"


class Examples(torch.utils.data.Dataset[dict[str, Any]]):
    """STEPS batches of random tokens, each made when it is asked for, from its number alone."""

    def __len__(self) -> int:
        return BATCH * STEPS

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = torch.Generator().manual_seed(index)
        tokens = torch.randint(1000, 30_000, (LENGTH,), generator=source)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": index % 2}


def model() -> torch.nn.Module:
    """The model that every loop starts from."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    )


def collate(pause: Callable[[], None], examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch; the loop that asked for it waits for its turn first."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    pause()
    batch: dict[str, torch.Tensor] = default_collate(examples)
    return batch


def by_hand(pause: Callable[[], None]) -> None:
    """What one writes without a library, nothing left out and nothing added."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = model().to(device).train()
    matrices = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for batch in DataLoader(Examples(), BATCH, collate_fn=partial(collate, pause)):
        loss = student(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        loss.backward()
        clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def trainer(pause: Callable[[], None]) -> None:
    """transformers.Trainer with its own defaults, but for what would write files or draw a bar."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        collator = partial(collate, pause)
        Trainer(model(), arguments, train_dataset=Examples(), data_collator=collator).train()


LOOPS: dict[str, Callable[[Callable[[], None]], None]] = {
    BY_HAND: by_hand,
    TRAINER: trainer,
    AGAIN: by_hand,
}
"""Every loop that is compared, by the name it has in the table; the last is the control."""


def main() -> None:
    """Time the loops in turns and print the table, every ratio to the loop by hand, and the machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="how many steps of each (default: %(default)s)"
    )
    rounds = parser.parse_args().rounds
    with ExitStack() as stack:
        seconds = measure(
            {name: stack.enter_context(Loop(run)) for name, run in LOOPS.items()}, rounds=rounds
        )
    print(machine(), table(seconds), sep="\n\n", end="\n\n")
    for name in LOOPS:
        if name != BY_HAND:
            print(f"{name} / {BY_HAND}: {ratio(seconds[name], seconds[BY_HAND])}")


if __name__ == "__main__":
    main()
