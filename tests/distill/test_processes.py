"""Two processes learn the same from tensors, and what one would."""

import torch

from tests.distill.processes import learn
from tests.helpers import tiny
from tests.helpers.processes import two


def test_two_processes_and_one(tmp_path):
    two("tests.distill.processes", str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = learn()
    matrices = [name for name in alone if name.startswith("trained.")]
    assert [tuple(alone[name].shape) for name in matrices] == [(24, 16), (6, 4)]
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert (first[name] - value).abs().max() < 1e-5, name
    for name in matrices:
        assert not torch.equal(alone[name], torch.eye(*alone[name].shape)), "the matrix has learned"
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(alone[f"model.{query}"], 10 * tiny.model().get_parameter(query))
