"""Two processes that share layers learn what one learns on all examples."""

import torch

from tests.helpers.processes import two
from tests.share.processes import learn


def test_two_processes_learn_as_one(tmp_path):
    two("tests.share.processes", str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    whole = learn()
    assert first.keys() == second.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
    one, other = (f"bert.encoder.layer.{number}.output.dense.shared.weight" for number in (0, 1))
    assert torch.equal(whole[one], whole[other])
    assert not torch.equal(whole[one.replace("shared", "up")], whole[other.replace("shared", "up")])
