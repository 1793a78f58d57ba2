"""What a step costs in a training loop, against the same model stepped by others.

    python -m benchmarks.loop

The model is MiniLM's shape, a BERT of 6 layers and width 384 with random weights; every loop draws the
same batches of 32 sequences of 64 tokens in the same order, and does the same work on each: forward,
backward, clipping at 1, AdamW with weight decay on the matrices, a linear schedule. The loops take turns.

A pass is timed as the loop of cook with it against the loop of cook without. Thresholds of `prune.weights`
move once in 63 steps, 1 % of three epochs of SST-2 at this batch size, so its figure is a mean over whole
periods; `distill.logits` is told against the loop that runs the teacher's forward and does nothing with it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, default_collate
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from benchmarks.pairs import machine, measure, ratio, table
from benchmarks.turns import Loop as Turns
from cook.data.tasks import Task
from cook.pipeline import environment
from cook.pipeline.inputs import make_passes
from cook.recipe import load_recipe
from cook.session import Session
from cook.teacher.teacher import Given
from cook.train.loop import Loop
from cook.train.recorder import StateRecorder

BATCH, LENGTH, STEPS = 32, 64, 6_300
PERIOD = STEPS // 100
LEARNING_RATE, WEIGHT_DECAY = 5e-5, 0.01
BY_HAND, AGAIN, TRAINER = "by hand", "by hand, again", "transformers.Trainer"
COOK, TEACHER = "cook, no pass", "cook, no pass, and the teacher's forward"


class Examples(torch.utils.data.Dataset[dict[str, Any]]):
    """STEPS batches of random tokens, each made when it is asked for, from its number alone."""

    def __len__(self) -> int:
        return BATCH * STEPS

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = torch.Generator().manual_seed(index)
        tokens = torch.randint(1000, 30_000, (LENGTH,), generator=source)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": index % 2}


def model(layers: int = 6, seed: int = 0) -> BertForSequenceClassification:
    """The model that every loop starts from."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536)
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
    student = model().train()
    stepped(pause, student, lambda batch: student(**batch).loss)


def stepped(
    pause: Callable[[], None],
    trained: torch.nn.Module,
    loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor],
) -> None:
    """A training loop by hand."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.to(device)
    matrices = [p for p in trained.parameters() if p.ndim > 1]
    others = [p for p in trained.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for batch in DataLoader(Examples(), BATCH, collate_fn=partial(collate, pause)):
        loss_of({name: tensor.to(device) for name, tensor in batch.items()}).backward()
        clip_grad_norm_(trained.parameters(), 1.0)
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


class Sequential(Task):
    """Hands out the batches in order, whatever order the loop asks for: the ones that the others see."""

    name = "sequential"
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, pause: Callable[[], None], also: Callable[[dict[str, torch.Tensor]], None] | None):
        self._pause, self._also = pause, also
        self._examples = iter(Examples()[index] for index in range(BATCH * STEPS))

    def prepare(self, dataset: Any, processor: Any | None) -> Any:
        return dataset

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(self._pause, [next(self._examples) for _ in rows])
        if self._also is not None:
            self._also(batch)
        return batch

    def predictions(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {}

    def metrics(self, predictions: Any) -> dict[str, float]:
        return {}


def compressed(
    pause: Callable[[], None],
    passes: Sequence[dict[str, Any]] = (),
    also: Callable[[dict[str, torch.Tensor]], None] | None = None,
    *,
    student: PreTrainedModel | None = None,
    teacher: Given = "self",
    task: Task | None = None,
    rows: Dataset | None = None,
    ready: Callable[[Session, Accelerator], None] | None = None,
) -> None:
    """The loop of cook with some passes.

    Args:
        also: is run on each batch before its step; `ready` once, before the first.
        task, rows: that make other batches.
    """
    train = {
        "steps": STEPS,
        "batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
    }
    recipe = load_recipe({"version": 1, "train": train, "passes": list(passes)}, partial=True)
    accelerator = environment.accelerator(recipe)
    student = model() if student is None else student
    student.to(accelerator.device)
    used = make_passes(recipe)
    if rows is None:
        rows = Dataset.from_dict({"row": range(BATCH * STEPS)})
    epoch = len(rows) // BATCH
    assert recipe.train is not None
    with Session(used, student, total_steps=STEPS, steps_per_epoch=epoch, teacher=teacher) as session:
        if ready is not None:
            ready(session, accelerator)
        Loop(
            session,
            task or Sequential(pause, also),
            rows,
            recipe.train,
            accelerator=accelerator,
            recorder=StateRecorder(student, used, evaluate=dict, macs=lambda: None),
            folder=None,
            identity={},
            bar=False,
        ).run()


def pruned(pause: Callable[[], None]) -> None:
    """With half of the encoder's weights going to zero."""
    compressed(pause, [{"prune.weights": {"sparsity": 0.5, "end": "100%"}}])


def rounded(pause: Callable[[], None]) -> None:
    """With every linear layer of the encoder fake-quantised from the first step."""
    compressed(pause, [{"quant.qat": {}}])


def distilled(pause: Callable[[], None]) -> None:
    """With a teacher of the same size, whose logits are learned."""
    compressed(pause, [{"distill.logits": {"temperature": 2}}])


def with_teacher(pause: Callable[[], None]) -> None:
    """Without a pass, but with a forward of that teacher at every step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = model().eval()
    teacher.to(device)

    def forward(batch: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            teacher(**{name: tensor.to(device) for name, tensor in batch.items() if name != "labels"})

    compressed(pause, also=forward)


LOOPS: dict[str, Callable[[Callable[[], None]], None]] = {
    BY_HAND: by_hand,
    TRAINER: trainer,
    COOK: compressed,
    "prune.weights": pruned,
    "quant.qat": rounded,
    "distill.logits": distilled,
    TEACHER: with_teacher,
    AGAIN: by_hand,
}
"""Every loop that is compared, by the name it has in the table; the last is the control."""

BARS = (
    (COOK, BY_HAND, 1.05),
    (COOK, TRAINER, 1.00),
    ("prune.weights", COOK, 1.02),
    ("quant.qat", COOK, 1.35),
    ("distill.logits", TEACHER, 1.05),
    (AGAIN, BY_HAND, 1.00),
)
"""What is told against what, and the most that it may be."""


def main() -> None:
    """Time the loops in turns and print the table, the ratios with their bars, and the machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=PERIOD, help="steps of each (default: %(default)s)")
    rounds = parser.parse_args().rounds
    with ExitStack() as stack:
        seconds = measure(
            {name: stack.enter_context(Turns(run)) for name, run in LOOPS.items()}, rounds=rounds
        )
    print(machine(), table(seconds), sep="\n\n", end="\n\n")
    for name, against, bar in BARS:
        found = ratio(seconds[name], seconds[against], mean=name == "prune.weights")
        verdict = "within" if found.within(bar) else "OVER"
        print(f"{name} / {against}: {found} - {verdict} {bar:.2f}")


if __name__ == "__main__":
    main()
