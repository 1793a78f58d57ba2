"""Two processes remove the same heads and neurons, whatever each of them looked at."""

import torch

from tests.several import two


def test_two_processes_agree(tmp_path):
    two("tests.prune.processes", str(tmp_path), "importance")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    widths = [value.shape[0] for name, value in first.items() if name.endswith("self.query.weight")]
    assert sum(widths) == 16
