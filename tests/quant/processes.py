"""Moving averages under DDP; as a program, one process of several.

torchrun --nproc-per-node 2 -m tests.quant.processes FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from cook.quant.fake import FakeQuantMoving
from tests.helpers import bound, tiny


def main(folder: Path) -> None:
    """Look at this process's half of eight examples, four times, and write the averages down."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = tiny.model().train()
    session = bound.session(model, {"quant.qat": {"observer": "moving", "decay": 0.5, "start": 0}}, steps=4)
    for each in model.modules():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.0
    module = DistributedDataParallel(session.module)
    for step in range(4):
        session.before_step(step)
        batch = {name: each[rank::2] for name, each in tiny.batch(size=8, seed=step).items()}
        sum(module(batch).values()).backward()
        session.after_step()
    observers = [each for each in model.modules() if isinstance(each, FakeQuantMoving)]
    torch.save([float(each.largest) for each in observers], folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
