"""A factorised embedding under DDP, its head tied to it; as a program, one process of several.

torchrun --nproc-per-node 2 -m tests.lowrank.processes FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tests.helpers import bound
from tests.model.nn.test_embedding import inputs, made


def main(folder: Path) -> None:
    """Train and finish, each process on rows of its own, and write down what came out."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = made("GPT2LMHeadModel")
    session = bound.session(model, {"lowrank.embedding": {"rank": 4}}, steps=3)
    module = DistributedDataParallel(session.module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    session.bind(optimizer)
    batch = {name: each[rank : rank + 2] for name, each in inputs(model).items()}
    for step in range(3):
        session.before_step(step)
        sum(module({**batch, "labels": batch["input_ids"]}).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
    session.finish()
    torch.save(model.state_dict(), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
