"""What the benchmarks of distillation compare is the same maths on both sides."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from benchmarks.distill import METHODS, agreement
from cook.passes import registered
from tests.helpers import tiny


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_losses_by_hand_are_those_of_the_pass(name: str) -> None:
    ours, theirs, apart = agreement(name)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert min(ours.values()) > 1e-3
    assert apart < 1e-5


def test_every_method_has_its_twin() -> None:
    assert {name for name in registered() if name.startswith("distill.")} == set(METHODS)


def test_textbrewer_begins_with_the_losses_of_cook(tmp_path: Path) -> None:
    pytest.importorskip("textbrewer")
    from benchmarks import textbrewer, textbrewer_sides

    tiny.folder(tmp_path / "teacher", layers=4)
    teacher = BertForSequenceClassification.from_pretrained(tmp_path / "teacher")
    for parameter in teacher.parameters():
        parameter.data.mul_(5 if parameter.dim() > 1 else 1)
    teacher.classifier.weight.data.mul_(10)
    teacher.save_pretrained(tmp_path / "teacher")
    setting = textbrewer_sides.Setting(
        teacher=str(tmp_path / "teacher"),
        train=str(tiny.table(tmp_path / "train.tsv", 24)),
        validation=str(tiny.table(tmp_path / "validation.tsv", 8, seed=1)),
        text=("sentence",),
        layers=(1, 3),
        max_length=32,
        epochs=2,
        batch_size=8,
    )
    ours, theirs, apart = textbrewer.agreement(setting)
    # The entropy that is taken off its loss here was rounded with it, and is told 16 times.
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert min(ours.values()) > 0.01
    assert apart < 1e-4
    # Both loops see as many batches as there are, and the same ones.
    seen: dict[str, int] = dict.fromkeys(textbrewer.SIDES, 0)
    for who, run in textbrewer.SIDES.items():

        def pause(who: str = who) -> None:
            seen[who] += 1

        workspace = run(setting, pause)
        assert all(math.isfinite(float(p.detach().sum())) for p in workspace.student.parameters())
    assert set(seen.values()) == {6}
