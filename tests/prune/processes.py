"""What leaves under DDP; as a program, one process of several.

torchrun --nproc-per-node 2 -m tests.prune.processes FOLDER importance|structured|hidden|budget
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from cook.data.calibration import given
from tests.helpers import bound, tiny

STEPS, SIZE = 4, 6
ITEMS = {
    "importance": ({"prune.heads": {"sparsity": 0.5}}, {"prune.neurons": {"sparsity": 0.5, "multiple": 1}}),
    "budget": ({"prune.units": {"budget": {"macs": 0.5}, "multiple": 1}},),
    "hidden": ({"prune.structured": {"budget": {"macs": 0.5}, "gates": ["neurons", "hidden"], "end": 3}},),
    "structured": (
        {"prune.structured": {"budget": {"macs": 0.5}, "gates": ["layers", "heads", "neurons"], "end": 3}},
    ),
}


def main(folder: Path, how: str) -> None:
    """Train and finish, with examples of this process's own, and write down what is left."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = tiny.model()
    model.train(how in ("structured", "hidden"))  # gates are drawn in training
    examples = given([tiny.batch(size=8, length=4 + 9 * rank, seed=100 + rank)])
    session = bound.session(model, *ITEMS[how], steps=STEPS, calibration=examples)
    module = DistributedDataParallel(session.module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    session.bind(optimizer)
    for step in range(STEPS):
        session.before_step(step)
        batch = {name: each[rank::2] for name, each in tiny.batch(size=SIZE, seed=step).items()}
        sum(module(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.after_step()
    session.finish()
    torch.save(model.state_dict(), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
