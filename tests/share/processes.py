"""Layers that share under DDP; as a program, one process of several.

torchrun --nproc-per-node 2 -m tests.share.processes FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import bound, tiny

STEPS, SIZE = 4, 6
OPTIONS = {"groups": 2, "residual": 2}


def learn(rank: int = 0, processes: int = 1) -> dict[str, Tensor]:
    """The finished model, after a few steps on this process's share of each batch."""
    model = tiny.model(layers=4).eval()  # without dropout, which is of its own in each process
    session = bound.session(model, {"share.layers": OPTIONS}, steps=STEPS)
    module = DistributedDataParallel(session.module) if processes > 1 else session.module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    session.bind(optimizer)
    for step in range(STEPS):
        session.before_step(step)
        batch = {name: each[rank::processes] for name, each in tiny.batch(size=SIZE, seed=step).items()}
        sum(module(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
    session.finish()
    return {name: each.detach() for name, each in model.named_parameters(remove_duplicate=False)}


def main(folder: Path) -> None:
    """Learn, and write down what came of it."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.save(learn(rank, distributed.get_world_size()), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
