"""A student that learns tensors under DDP; as a program, one process of several.

torchrun --nproc-per-node 2 -m tests.distill.processes FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import bound, tiny

STEPS, SIZE = 4, 6
HIDDEN = {
    "map": {
        "layers[0].output": "layers[0].output",
        "layers[1].attention.values": "layers[0].attention.values",
    },
    "projection": "each",
    "start": 1,
}
ITEMS = ({"distill.hidden": HIDDEN}, {"distill.minilm": {"end": 3, "task_weight": 0}})


def learn(*, rank: int = 0, processes: int = 1) -> dict[str, Tensor]:
    """What is trained, after a few steps on this process's share of each batch."""
    student = tiny.model().eval()
    teacher = tiny.model(width=24, seed=1)
    with torch.no_grad():
        for model in (student, teacher):
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(10)
    session = bound.session(student, *ITEMS, steps=STEPS, teacher=teacher)
    module = DistributedDataParallel(session.module) if processes > 1 else session.module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    session.bind(optimizer)
    for step in range(STEPS):
        session.before_step(step)
        batch = {name: each[rank::processes] for name, each in tiny.batch(size=SIZE, seed=step).items()}
        sum(module(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
    return {name: each.detach().clone() for name, each in session.module.named_parameters()}


def main(folder: Path) -> None:
    """Learn, and write down what came of it."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.save(learn(rank=rank, processes=distributed.get_world_size()), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
