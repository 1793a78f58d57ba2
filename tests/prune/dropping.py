"""Layers that are left out at random under DDP; as a program, one process of several.

torchrun --nproc-per-node 2 -m tests.prune.dropping FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import bound, families

FAMILIES = ("bert", "bart", "deberta-v2")
STEPS, RATE = 16, 0.6


def learn(family: str, *, rank: int = 0, processes: int = 1) -> dict[str, Tensor]:
    """What is trained, after a few steps on this process's share of each batch, in two forwards a step."""
    model = families.made(family, families.ATTENTION.get(family, "sdpa"))
    session = bound.session(model, {"prune.layerdrop": {"rate": RATE}}, steps=STEPS)
    module = DistributedDataParallel(session.module) if processes > 1 else session.module
    module.train()
    for each in model.modules():  # which is of its own in each process
        if isinstance(each, nn.Dropout) or type(each).__name__ == "StableDropout":
            each.p = each.drop_prob = 0.0
        for name in ("dropout", "activation_dropout"):
            if isinstance(getattr(each, name, None), float):
                setattr(each, name, 0.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    session.bind(optimizer)
    for step in range(STEPS):
        session.before_step(step)
        for forward in range(2):
            batch = families.batch(family, seed=2 * step + forward)
            batch = {name: torch.cat([each, each[:1]])[rank::processes] for name, each in batch.items()}
            sum(module(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
    return {name: each.detach().clone() for name, each in session.module.named_parameters()}


def main(folder: Path) -> None:
    """Learn, and write down what came of it."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for family in FAMILIES:
        found = learn(family, rank=rank, processes=distributed.get_world_size())
        torch.save(found, folder / f"{family}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
