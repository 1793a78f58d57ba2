"""Every registered pass on a model in memory: by `cook.apply`, and by `cook.attach` in one's own loop."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from PIL import Image
from transformers import (
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import cook
from cook.errors import CookError
from cook.model.probe.equivalence import outputs
from cook.passes import registered
from cook.pipeline.plan import bare
from tests.helpers import pass_cases, pass_matrix, tiny
from tests.helpers.pass_cases import Case, applies_to
from tests.helpers.traces import differences, hooks

TRAINED = {("quant.qat", 1)}
"""Examples with an option that needs training, where the pass itself does not."""
EXAMPLES = [(name, number) for name, cls in registered().items() for number in range(len(cls.examples))]


def present(case: Case) -> dict[str, Any]:
    """A teacher, calibration examples and a tokenizer, where the passes want them."""
    wants = pass_cases.wants(case)
    found: dict[str, Any] = {"teacher": "self"} if "teacher" in wants else {}
    if "calibration" in wants:
        found["calibration"] = [tiny.batch(case.family, size=16, seed=seed) for seed in range(2)]
    if "tokenizer" in wants:
        found["tokenizer"] = tiny.tokenizer()
    return found


def texts() -> dict[str, Any]:
    """Rows of all words, for passes that read the run's own texts."""
    said = " ".join(pass_matrix.TABLE_WORDS)
    return {"train": [{"sentence": said, "label": label} for label in ("negative", "positive")]}


APPLICABLE = [
    (name, number, family)
    for name, number in EXAMPLES
    for family in tiny.FAMILIES
    if applies_to(name, family)
]


@pytest.mark.parametrize(("name", "number", "family"), APPLICABLE)
def test_apply_acts_at_once_or_says_what_it_needs(name: str, number: int, family: str) -> None:
    model = tiny.model(family).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    case = Case(family, ((name, number),))
    config = {"version": 1, "passes": pass_cases.listed(case, trains=False)}
    wants, given = pass_cases.wants(case), present(case)
    if "calibration" in wants and "training" not in wants:
        with pytest.raises(CookError, match="needs examples to look at") as caught:
            cook.apply(model, config)
        assert "passes[0]" in (caught.value.where or "")
    if "tokenizer" in wants:
        given["data"] = texts()
    if "training" in wants or (name, number) in TRAINED:
        with pytest.raises(CookError, match="needs training") as caught:
            cook.apply(model, config, **given)
        assert "passes[0]" in (caught.value.where or "")
        assert list(differences(before, model.state_dict())) == []
    else:
        result = cook.apply(model, config, **given)
        assert result.model is model
        (row,) = result.report.passes
        assert row.facts
        assert row.after.bytes < row.before.bytes or row.after.zeros > row.before.zeros
    assert hooks(model) == {}


@pytest.mark.parametrize(("name", "number"), EXAMPLES)
def test_attach_serves_a_loop_of_ones_own(name: str, number: int, tmp_path: Path) -> None:
    families = [family for family in tiny.FAMILIES if applies_to(name, family)]
    family = families[EXAMPLES.index((name, number)) % len(families)]
    model = tiny.model(family).train()
    case = Case(family, ((name, number),))
    given = present(case)
    if "teacher" in given:
        given["teacher"] = copy.deepcopy(model)
    passes = pass_cases.listed(case)
    if "tokenizer" in given:
        (tmp_path / "words.txt").write_text(" ".join(pass_matrix.TABLE_WORDS), encoding="utf-8")
        passes[0][name]["corpora"] = [str(tmp_path / "words.txt")]
    config = {"version": 1, "passes": passes}
    batch = tiny.batch(family)
    with cook.attach(model, config, total_steps=4, **given) as session:
        optimizer = torch.optim.AdamW(session.module.parameters(), lr=0.01)
        session.bind(optimizer)
        for step in range(4):
            session.before_step(step)
            terms = session.module(batch)
            assert "task" in terms
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
            session.after_step()
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        numbers = session.token_id_map
        trained = outputs(model, numbers.known(inputs) if numbers else inputs)["logits"]
        session.finish()
        inputs = numbers(inputs) if numbers else inputs
    assert session.facts.keys() == {name}
    assert hooks(model) == {}
    assert torch.allclose(outputs(model, inputs)["logits"], trained, atol=1e-5)


CONFLICTS = [
    ([{"prune.layers": {"keep": [1]}}, {"prune.layers": {"keep": [0]}}], "layers"),
    (
        [
            {"prune.weights": {"pattern": "2:4"}},
            {"prune.neurons": {"sparsity": 0.5, "importance": "magnitude"}},
        ],
        "tears the groups",
    ),
    (
        [
            {"prune.heads": {"sparsity": 0.5, "importance": "magnitude"}},
            {"prune.heads": {"sparsity": 0.5, "importance": "random"}},
        ],
        "heads",
    ),
]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize(("passes", "words"), CONFLICTS)
def test_conflicts_are_refused_before_anything_is_changed(
    passes: list[Any], words: str, trains: bool
) -> None:
    model = tiny.model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = {"version": 1, "passes": passes}
    with pytest.raises(CookError, match=words) as caught:
        cook.attach(model, config, total_steps=10) if trains else cook.apply(model, config)
    assert "passes[" in (caught.value.where or "")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert hooks(model) == {}


def test_a_bare_copy_has_the_structure_and_no_weights() -> None:
    model = tiny.model("gpt2")
    passes = [{"lowrank.linear": {"method": "svd"}}, {"share.layers": {"groups": "all", "init": "first"}}]
    passes[0]["lowrank.linear"]["spread"] = False
    model = cook.apply(model, {"version": 1, "passes": passes}).model
    seen: list[str] = []
    model.transformer.h[0].register_forward_hook(lambda *_: seen.append("mine"))
    copied = bare(model)
    assert {each.device.type for each in copied.state_dict().values()} == {"meta"}
    assert {name: each.shape for name, each in copied.named_parameters()} == {
        name: each.shape for name, each in model.named_parameters()
    }
    copied.transformer.h[0](torch.empty(1, 2, 16, device="meta"))
    assert not seen


def test_a_dispatched_model_is_planned_where_it_is(tmp_path: Path) -> None:
    model = tiny.model().eval()
    batch = tiny.batch(size=2)
    expected = model(**batch).logits
    where = {"bert.embeddings": "disk", "bert.encoder": "disk", "bert.pooler": "cpu", "classifier": "cpu"}
    dispatch_model(model, where, main_device="cpu", offload_dir=str(tmp_path))
    copied = bare(model)
    assert {each.device.type for each in copied.state_dict().values()} == {"meta"}
    assert not any("_hf_hook" in vars(module) for module in copied.modules())
    torch.testing.assert_close(model(**batch).logits, expected)
    hidden = {"distill.hidden": {"map": {"layers[1].output": "layers[1].output"}}}
    config = {"version": 1, "passes": [hidden]}
    with cook.attach(tiny.model(seed=1), config, total_steps=2, teacher=model) as session:
        session.before_step(0)
        assert float(session.module(batch)["hidden"].detach()) > 0


def test_one_batch_in_the_place_of_several_is_told() -> None:
    config = {"version": 1, "passes": ["lowrank.linear"]}
    with pytest.raises(CookError, match="expected mappings of tensors") as caught:
        cook.apply(tiny.model(), config, calibration=tiny.batch())
    assert "[batch]" in str(caught.value.hint)


def test_a_limit_is_kept_in_memory_too() -> None:
    rows = [{"sentence": "good film", "label": 1}, {"sentence": "bad plot", "label": 0}] * 32
    config = {"version": 1, "data": {"limit": 8}, "train": {"epochs": 1, "batch_size": 8}}
    result = cook.apply(tiny.model(), config, data={"train": rows}, tokenizer=tiny.tokenizer())
    assert result.report.train is not None
    assert result.report.train["steps"] == 1


def test_labels_are_named_in_memory_too() -> None:
    rows = [{"sentence": "good film", "label": "yes"}, {"sentence": "bad plot", "label": "no"}] * 4
    model = tiny.model()
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    section = {"path": "x", "task": "text-classification", "labels": ["no", "yes"]}
    config = {"version": 1, "model": section, "train": {"steps": 1, "batch_size": 8}}
    result = cook.apply(model, config, data={"train": rows}, tokenizer=tiny.tokenizer())
    assert result.model.config.id2label == {0: "no", 1: "yes"}
    section["labels"] = ["no", "yes", "perhaps"]
    with pytest.raises(CookError, match="3 labels are given, the model has 2"):
        cook.apply(tiny.model(), config, data={"train": rows}, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize(
    "item",
    [
        {"prune.weights": {"sparsity": 0.5, "start": 2, "end": 2}},
        {"prune.heads": {"sparsity": 0.5, "importance": "magnitude", "start": 2, "end": 2}},
    ],
)
def test_an_empty_window_acts_in_its_place(item: Any) -> None:
    with cook.attach(tiny.model(), {"version": 1, "passes": [item]}, total_steps=4) as session:
        zeros = []
        for step in range(4):
            session.before_step(step)
            session.masks.apply()
            zeros.append(sum(int((each == 0).sum()) for each in session.model.parameters()))
            session.after_step()
    assert zeros[0] == zeros[1] < zeros[2] == zeros[3]


class Watch:
    """A hook's owner that cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen = 0

    def see(self, *_: Any) -> None:
        self.seen += 1


def watched(model: Any) -> None:
    model.bert.register_forward_hook(Watch().see)
    model.bert.register_full_backward_hook(Watch().see)


def keeping(model: Any) -> None:
    model.bert.last = model.classifier.weight * 2


def wrapped(model: Any) -> None:
    whole = model.forward
    model.forward = lambda *args, **named: whole(*args, **named)


def locked(model: Any) -> None:
    model.bert.lock = threading.Lock()


@pytest.mark.parametrize("change", [watched, keeping, wrapped, locked])
def test_what_somebody_did_to_a_model_is_no_obstacle(change: Any) -> None:
    model, teacher = tiny.model(), tiny.model(seed=1)
    change(model)
    change(teacher)
    passes = [
        {"distill.hidden": {"map": {"layers[1].output": "layers[1].output"}}},
        {"prune.weights": {"sparsity": 0.5}},
    ]
    with cook.attach(model, {"version": 1, "passes": passes}, total_steps=2, teacher=teacher) as session:
        session.before_step(0)
        assert set(session.module(tiny.batch())) == {"task", "hidden"}


class Stubborn(BertForSequenceClassification):
    """Looks at what a copy without values cannot tell."""

    def forward(self, input_ids: Any, attention_mask: Any = None, **named: Any) -> Any:
        examples, tokens = attention_mask.shape
        assert bool((input_ids >= 0).all())
        assert (examples, tokens) == tuple(input_ids.shape)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **named)


def test_a_forward_that_needs_values_is_measured_when_attached() -> None:
    model = Stubborn(tiny.model().config)
    hidden = {"distill.hidden": {"map": {"embeddings.output": "embeddings.output"}}}
    config = {"version": 1, "passes": [hidden]}
    with cook.attach(model, config, total_steps=2, teacher="self") as session:
        session.before_step(0)
        assert "hidden" in session.module(tiny.batch())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_folded_and_reported_as_such(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = tiny.model("vit", layers=3, width=32).to(dtype)
    rows = [{"image": Image.new("L", (8, 8), 30 * n), "label": n % 2} for n in range(8)]
    config = {
        "version": 1,
        "data": {"image": "image"},
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-4},
        "passes": ["quant.qat"],
    }
    result = cook.apply(model, config, data={"train": rows})
    assert result.report.environment["precision"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("asked", [None, 32])
def test_positions_behind_the_padding_are_fewer(asked: int | None) -> None:
    settings = {**tiny.model().config.to_dict(), "max_position_embeddings": 34, "pad_token_id": 1}
    model = RobertaForSequenceClassification(RobertaConfig(**{**settings, "model_type": "roberta"}))
    rows = [{"sentence": "film " * 60, "label": n % 2} for n in range(4)]
    reader = tiny.tokenizer()
    reader.model_max_length = int(1e30)
    config = {"version": 1, "data": {"max_length": asked}, "train": {"steps": 1, "batch_size": 4}}
    cook.apply(model, config, data={"train": rows}, tokenizer=reader)
    config["data"] = {"max_length": 33}
    with pytest.raises(CookError, match="33 is more than the model's 32 positions"):
        cook.apply(model, config, data={"train": rows}, tokenizer=reader)
