"""Two processes remove the same heads and neurons, whatever each of them looked at."""

import pytest
import torch

from tests.helpers.processes import two


@pytest.mark.parametrize("how", ["importance", "budget"])
def test_two_processes_agree(tmp_path, how):
    two("tests.prune.processes", str(tmp_path), how)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    widths = [value.shape[0] for name, value in first.items() if name.endswith("self.query.weight")]
    assert sum(widths) == 16 if how == "importance" else sum(widths) < 32
