"""The model card: front matter that the hub reads, how to load, the tables, the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from cook.report import card
from tests.report.example import report


def front(text: str) -> dict[str, Any]:
    """The YAML between the first two rules."""
    return yaml.safe_load(text.split("---\n")[1])


def test_card() -> None:
    text = card(report(), "version: 1\npasses: []\n", name="digits-small", base_model="google/vit-base")
    assert text.startswith("---\n")
    assert front(text) == {
        "library_name": "transformers",
        "base_model": "google/vit-base",
        "pipeline_tag": "image-classification",
        "tags": ["cook", "compression"],
        "metrics": ["accuracy"],
    }
    assert "# digits-small\n" in text
    assert "import cook  # teaches" in text
    assert 'AutoModelForImageClassification.from_pretrained("digits-small")' in text
    assert "| size on disk | 1.63 MB | 453 kB | 3.61x smaller |" in text
    assert "Zeros are stored still and do not make dense kernels faster" in text
    assert "latencies were timed" in text
    assert text.endswith("```yaml\nversion: 1\npasses: []\n```\n")


def test_the_hub_reads_the_front_matter(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# base\n")
    text = card(report(), "version: 1", name="small", base_model=str(base), dataset="nyu-mll/glue")
    data = ModelCard(text).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "license": "apache-2.0",
        "datasets": ["nyu-mll/glue"],
        "tags": ["cook", "compression"],
        "metrics": ["accuracy"],
    }
    known = ModelCard(card(report(), "", name="small", base_model="google/vit-base")).data
    assert known.base_model == "google/vit-base"
    assert known.license is None


@pytest.mark.parametrize(
    "readme", [None, "no front matter", "---\n: [\n---\n", "---\nlicense: [mit]\n---\n", "---\n"]
)
def test_a_licence_is_never_invented(tmp_path: Path, readme: str | None) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert "license" not in front(card(report(), "", name="small", base_model=str(tmp_path)))


def test_the_card_names_no_package_that_is_not_published() -> None:
    text = card(report(), "version: 1", name="small")
    assert "cook-compress" not in text
    assert "`pip install .` in a clone of its repository" in text


def test_rows_are_told() -> None:
    built = report()
    built.data = {"rows": {"train": 1437, "validation": 360}, "truncated": {"train": 7, "validation": 0}}
    text = card(built, "version: 1", name="small")
    assert "Trained on 1,437 rows, validated on 360 rows, rows cut for their length: 7 of training." in text


def test_a_plain_folder_needs_no_cook() -> None:
    built = report()
    assert built.reload is not None
    built.reload.plain = True
    text = card(built, "version: 1", name="small")
    assert "import cook" not in text
    assert "transformers alone loads it" in text


@pytest.mark.parametrize(
    "path", ["/data/model", "./model", "../model", "~/model", "a/b/c", "", None, "a b/c"]
)
def test_only_a_hub_id_is_a_base_model(path: str | None) -> None:
    assert "base_model" not in front(card(report(), "", name="small", base_model=path))


def test_a_local_path_is_not_published() -> None:
    text = card(report(), "", name="small", base_model="/data/models/minilm/")
    assert "`minilm` compressed with cook" in text
    assert "/data" not in text


def test_student_and_teachers_are_named() -> None:
    built = report()
    built.model.student = {"layers": [1, -1]}
    built.model.teachers = ["self", "/data/models/large/", "google/vit-base"]
    text = card(built, "", name="small", base_model="gpt2")
    taught = "taught by the model itself and `large` and `google/vit-base`"
    assert f"`gpt2`, layers 1, -1, {taught}, compressed with cook (`distill.logits`" in text
    built.model.student, built.model.teachers = {"path": "/data/models/little"}, []
    text = card(built, "", name="small", base_model="gpt2")
    assert "`gpt2`, in its place `little`, compressed with cook" in text
    assert "/data" not in text


def test_what_was_not_measured_is_not_spoken_of() -> None:
    built = report()
    built.model.latency = built.model.auto_class = built.reload = None
    built.passes = []
    text = card(built, "", name="small", base_model="gpt2")
    assert "latenc" not in text
    assert "AutoModel.from_pretrained" in text
    assert "`gpt2` compressed with cook, without a pass." in text


def test_a_recipe_with_fences_stays_inside_its_own() -> None:
    text = card(report(), "# ```\n# ````\nversion: 1", name='a"b\nc')
    assert "`````yaml\n# ```\n# ````\nversion: 1\n`````" in text
    assert 'from_pretrained("a\\"b\\nc")' in text
    assert '# a"b c\n' in text
