"""Folders: written whole or not at all, loaded back in a fresh process, refused without cook."""

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from cook.errors import CookError, RunError
from cook.model.hub import folder
from cook.model.hub.verify import Case, verify, verify_all
from tests.helpers import tiny
from tests.helpers.reshaped import auto_class, inputs, logits, make

KINDS = ("plain", "narrow", "integers", "both")

STRANGER = """
import sys
import transformers
transformers.logging.set_verbosity(transformers.logging.CRITICAL)
transformers.logging.disable_progress_bar()
for argument in sys.argv[1:]:
    auto, path = argument.split("=", 1)
    try:
        getattr(transformers, auto).from_pretrained(path)
    except (RuntimeError, ValueError, OSError):
        continue
    print(argument)
assert "cook" not in sys.modules
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every family and kind, saved; the last two in shards and in bfloat16."""
    root = tmp_path_factory.mktemp("folders")
    made = {}
    for family in tiny.FAMILIES:
        for kind in KINDS:
            model = make(family, kind)
            folder.save(model, root / family / kind)
            made[root / family / kind] = (family, model)
    folder.save(make("bert", "both"), root / "shards", shard_size="2KB")
    made[root / "shards"] = ("bert", make("bert", "both"))
    half = folder.cast(make("gpt2", "both"), torch.bfloat16)
    folder.save(half, root / "half")
    made[root / "half"] = ("gpt2", half)
    return made


def test_a_fresh_process_gives_the_same_outputs(folders):
    cases = [
        Case(path, inputs(family), logits(model, family), auto_class(family))
        for path, (family, model) in folders.items()
    ]
    family, first = next(iter(folders.values()))
    wrong = Case(cases[0].folder, cases[0].batch, logits(first, family) + 1, cases[0].auto_class)
    shape = Case(cases[0].folder, cases[0].batch, torch.zeros(1), cases[0].auto_class)
    *results, off, none = verify_all([*cases, wrong, shape])
    assert off["max_abs_difference"] == pytest.approx(1)
    assert none["max_rel_difference"] == math.inf
    assert not off["exact"]
    assert not none["exact"]
    for case, found in zip(cases, results, strict=True):
        assert found == {
            "max_abs_difference": 0.0,
            "max_rel_difference": 0.0,
            "exact": True,
            "plain": Path(case.folder).name == "plain",
        }, case.folder


def test_a_stranger_without_cook_is_refused(folders):
    locked = {path: family for path, (family, _) in folders.items() if path.name != "plain"}
    asked = [
        f"{auto}={path}" for path, family in locked.items() for auto in ("AutoModel", auto_class(family))
    ]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *asked], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "these loaded without cook"


def test_a_plain_load_names_cook_in_the_report_that_its_error_points_at(folders):
    path = next(path for path in folders if path.name != "plain")
    load = f"import transformers; transformers.{auto_class(folders[path][0])}.from_pretrained({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode
    assert done.stderr.rstrip().endswith("For details look at the above report!")
    assert "import_cook_before_loading_this_model" in done.stderr


def test_a_folder_that_does_not_load_back_fails_the_run(folders, monkeypatch):
    path, (family, model) = next(iter(folders.items()))
    monkeypatch.setattr("cook.model.hub.verify.STRANGER", "import sys; sys.exit('the reason')")
    with pytest.raises(RunError, match="does not load back: the reason"):
        verify(path, inputs(family), logits(model, family), auto_class=auto_class(family))


def test_bytes_are_those_of_the_tensors(folders):
    for path in folders:
        tensors = [each for file in path.glob("*.safetensors") for each in load_file(file).values()]
        assert folder.weight_bytes(path) == sum(each.numel() * each.element_size() for each in tensors)


def test_integers_shrink_the_file(folders):
    sizes = {path.name: folder.weight_bytes(path) for path in folders if path.parent.name == "llama"}
    assert sizes["integers"] < 0.55 * sizes["plain"]


def test_damaged_weights_have_no_size(tmp_path):
    with pytest.raises(CookError, match="no safetensors"):
        folder.weight_bytes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(CookError, match="damaged"):
        folder.weight_bytes(tmp_path)


def test_read_blueprint(folders, tmp_path):
    for path, (_, model) in folders.items():
        found = folder.read_blueprint(path)
        assert (found is None) == (path.name == "plain")
        assert found is None or found == model.hf_quantizer.blueprint
    with pytest.raises(CookError, match=r"config\.json"):
        folder.read_blueprint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CookError, match="not JSON"):
        folder.read_blueprint(tmp_path)


def test_save_writes_everything_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a" / "model"
    extra: dict[str, str | bytes] = {"recipe.yaml": "version: 1\n", "runs/x.bin": b"\x00"}
    folder.save(make("bert", "plain"), path, processor=tiny.tokenizer(), extra=extra)
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.yaml"} <= set(os.listdir(path))
    assert (path / "runs" / "x.bin").read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["model"]
    with pytest.raises(ValueError, match="outside"):
        folder.save(make("bert", "plain"), tmp_path / "b", extra={"../x": ""})
    assert sorted(os.listdir(tmp_path)) == ["a"]


def test_floats_are_written_in_the_dtype_asked_for(tmp_path):
    model = make("bert", "integers")
    folder.save(model, tmp_path / "half", dtype=torch.float16)
    assert model.dtype == torch.float32
    state = load_file(tmp_path / "half" / "model.safetensors")
    assert state["classifier.weight"].dtype == torch.int8
    assert state["classifier.scale"].dtype == torch.float32
    assert state["classifier.bias"].dtype == torch.float16


def test_a_taken_path_is_refused(tmp_path):
    model = make("bert", "plain")
    path = tmp_path / "model"
    path.mkdir()
    folder.save(model, path)
    with pytest.raises(CookError, match="--force"):
        folder.save(model, path)
    folder.save(model, path, extra={"new": "1"}, force=True)
    assert (path / "new").exists()
    assert os.listdir(tmp_path) == ["model"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(CookError, match="holds no model"):
        folder.save(model, tmp_path / "notes", force=True)
    with pytest.raises(CookError, match="a file"):
        folder.save(model, tmp_path / "notes" / "mine.txt", force=True)


def test_only_a_model_is_replaced(tmp_path, monkeypatch):
    model = make("bert", "plain")
    home = tmp_path / "home"
    here, site, repository = home / "here", tmp_path / "site", tmp_path / "repository"
    for path in (home, here, repository):
        model.save_pretrained(path)
    (repository / ".git").mkdir()
    site.mkdir()
    (site / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(here)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    monkeypatch.setenv("HOME", str(home))
    refused = {home: "home", site: "no model", repository: "git", tmp_path / "link": "a link"}
    for path, words in {**refused, tmp_path / "nowhere": "a link"}.items():
        with pytest.raises(CookError, match=words):
            folder.save(model, path, force=True)
    monkeypatch.chdir(here)
    with pytest.raises(CookError, match="current folder"):
        folder.save(model, here, force=True)
    assert sorted(os.listdir(tmp_path)) == ["home", "link", "nowhere", "repository", "site"]


@pytest.fixture
def no_space():
    """No file of this process may grow beyond 20 kB; Python ignores the signal and gets the error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_folder(tmp_path, no_space):
    model = make("bert", "integers")
    folder.save(model, tmp_path / "model")
    with pytest.raises(RunError, match="cannot be written"):
        folder.save(tiny.model(width=64), tmp_path / "model", force=True)
    assert os.listdir(tmp_path) == ["model"]
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(back, "bert"), logits(model, "bert"))


def test_a_further_file_on_a_full_disk(tmp_path, no_space):
    with pytest.raises(RunError, match="cannot be written: File too large"):
        folder.write(tmp_path, "README.md", "x" * 30_000)


def test_an_interrupted_replacement_is_put_back(tmp_path):
    folder.save(make("bert", "plain"), tmp_path / "model", extra={"mark": "old"})
    (tmp_path / "model").rename(tmp_path / ".model.former")
    (tmp_path / "draft").mkdir()
    with pytest.raises(RunError):
        folder.publish(tmp_path / "none", tmp_path / "model", force=True)
    assert (tmp_path / "model" / "mark").read_text() == "old"
    assert json.loads((tmp_path / "model" / "config.json").read_text())


def test_a_tokenizer_on_a_full_disk(tmp_path):
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most[1]))
    try:
        # The tokenizers library itself raises a bare Exception.
        with pytest.raises(OSError, match="File too large"):
            folder.save_processor(tiny.tokenizer(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
