"""The tables say what the report says, in 100 columns, with zeros and removed parameters apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cook.report import Report, ablation_table, markdown, plan_table, terminal
from cook.report.draw import clean, grid, pipes, shorten, wrap
from cook.report.table import latency_verdict, loss_rows, title
from tests.report.example import report, state


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def widest(text: str) -> int:
    """The length of the longest line."""
    return max(map(len, text.splitlines()))


def line(text: str, start: str) -> str:
    """The first line of `text` that starts with `start`, its runs of spaces made one."""
    return next(" ".join(row.split()) for row in text.splitlines() if row.startswith(start))


def test_terminal_shows_the_model_before_and_after() -> None:
    text = terminal(report())
    assert line(text, "parameters") == "parameters 404 k 404 k same"
    assert line(text, "zeros (stored)") == "zeros (stored) 128 238 k"
    assert line(text, "removed (gone)") == "removed (gone) 0 0"
    assert line(text, "sparsity") == "sparsity 0.0 % 58.9 %"
    assert line(text, "size on disk") == "size on disk 1.63 MB 453 kB 3.61x smaller"
    assert line(text, "  against the source") == "against the source 817 kB 453 kB 1.80x smaller"
    assert line(text, "accuracy") == "accuracy 96.94 % 95.28 % -1.66 points"
    assert line(text, "latency") == "latency, batch 1 1.21 ms 1.37 ms 1.13x slower (± 3.1 %)"
    assert "900 steps (20 epochs) in 1 min 11 s, last checkpoint, cpu, fp32, 2 threads, seed 0" in text
    assert "outputs differ by at most 2.1e-06; loading it needs `import cook`" in " ".join(text.split())


def test_a_larger_student_has_added_parameters() -> None:
    built = report()
    built.model.after = replace(built.model.after, removed=-44_100)
    assert line(terminal(built), "added") == "added 0 44.1 k"


def test_the_title_names_student_and_teachers() -> None:
    built = report()
    assert title(built) == "digits-vit: distill.logits, prune.weights, quant.qat"
    built.passes = built.passes[:1]
    built.model.teachers = ["self"]
    assert title(built) == "digits-vit, taught by the model itself: distill.logits"
    built.model.student, built.model.teachers = {"config": {"depth": 3, "width": 8}}, ["self", "/a/large"]
    made = "with depth 3, width 8 from scratch, taught by the model itself and /a/large"
    assert title(Report.from_dict(built.to_dict())) == f"digits-vit, {made}: distill.logits"


def test_terminal_shows_a_row_a_pass() -> None:
    text = terminal(report())
    row = line(text, "prune.weights  ")
    # What its window did, not what the whole run did: the size is the other pass's work.
    assert row == "prune.weights 90-539 0.0 → 58.9 % 0 1.63 → 1.63 MB 96.11 → 95.56 % (-0.55)"
    assert "    60 % of 396,800 weights in 24 linear layers, one threshold" in text
    assert "    weights int8, activations int8, layers 24, frozen true" in text


def test_zeros_are_not_counted_as_removed() -> None:
    built = report()
    row = built.passes[1]
    row.states = [
        state(0, 100, 0.9, removed=10, when="start"),
        state(200_000, 100, 0.9, removed=15, when="end"),
    ]
    assert line(terminal(built), "prune.weights  ").split()[6] == "5"


def test_terminal_fits_100_columns_and_has_no_escapes() -> None:
    built = report()
    built.model.name = "an-owner-with-a-long-name/" + "a-model-with-a-long-name-" * 4 + "\x1b[31m\n"
    built.passes[0].id = "a.pass.with.a.remarkably.long.name#2"
    built.passes[0].window = (1_000_000, 2_000_000)
    built.passes[0].facts = {"note": "words " * 60 + "\x1b]0;owned\x07"}
    built.train = {"steps": 2_000_000, "metric": "loss", "selected": "best", "selected_step": 7}
    text = terminal(built)
    assert widest(text) <= 100
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "best checkpoint (step 7)" in text


LATENCY = {"before_ms": 1.24, "after_ms": 1.0, "ratio": 1.24, "rounds": 15}


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        ({"low": 1.2, "high": 1.3, "spread": 0.04, "same_operations": False}, "1.24x faster (± 4.0 %)"),
        ({"low": 0.9, "high": 1.3, "spread": 0.16, "same_operations": False}, "no difference measured"),
        ({"low": 1.2, "high": 1.3, "spread": 0.04, "same_operations": True}, "no difference measured"),
        ({"spread": 0.1}, "1.24x faster (± 10.0 %)"),
        ({"spread": 0.3}, "no difference measured"),
        ({}, "1.24x faster"),
        ({"ratio": 0.5, "low": 0.4, "high": 0.6, "spread": 0.2}, "2.00x slower (± 20.0 %)"),
    ],
)
def test_a_latency_is_only_told_where_one_was_measured(told: dict[str, Any], verdict: str) -> None:
    assert latency_verdict({**LATENCY, **told}) == verdict


def amounts(built: Report) -> Report:
    """The example with what each pass did itself."""
    for row, (zeros, size) in zip(built.passes, [(0, 0), (237_952, 0), (0, -1_181_532)], strict=True):
        row.amounts = {"zeros": zeros, "removed": 0, "bytes": size}
    return built


def test_a_row_holds_what_its_pass_did_itself() -> None:
    text = terminal(amounts(report()))
    assert line(text, "prune.weights  ") == "prune.weights 90-539 +238 k 0 0 B"
    assert line(text, "quant.qat  ") == "quant.qat 540-899 0 0 -1.18 MB"
    alone = amounts(report())
    alone.passes = alone.passes[1:]
    text = terminal(alone)
    assert line(text, "prune.weights  ") == "prune.weights 90-539 +238 k 0 0 B 96.11 → 95.56 % (-0.55)"
    assert Report.from_dict(alone.to_dict()) == alone


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_everything_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for built in (report(), amounts(report())):
        built.passes[0].id = "a.pass.with.a.remarkably.long.name#2"
        built.passes[0].window = (1_000_000, 2_000_000)
        built.data = {"rows": {"train": 67_349, "validation": 872}}
        text = terminal(built)
        assert widest(text) <= min(columns, 100)
        assert str(built) == text
        for number in ("67,349 rows", "1.63 MB", "58.9 %"):
            assert number in text


def test_numbers_keep_their_units() -> None:
    for room in range(24, 40):
        lines = wrap("from 45.2 → 12.1 MB in 1,234 rows, ± 3.1 % of it", width=room + 4, indent="    ")
        assert not [
            each for each in lines if each.rstrip(",").split()[-1] in {"45.2", "12.1", "1,234", "±", "→"}
        ]


def test_a_difference_within_one_standard_error_is_marked() -> None:
    built = report()
    built.data = {"rows": {"validation": 100}}  # one standard error is 1.72 points
    assert (
        line(terminal(built), "accuracy")
        == "accuracy 96.94 % 95.28 % -1.66 points, within one standard error"
    )
    built.data = {"rows": {"validation": 1000}}
    assert line(terminal(built), "accuracy") == "accuracy 96.94 % 95.28 % -1.66 points"
    assert "validated on 1,000 rows" in markdown(built)


def test_f1_says_which_class_is_positive() -> None:
    built = report()
    built.model.after.metrics = {"accuracy": 0.9, "f1_binary": 0.8}
    built.model.positive_class = "spam"
    assert line(terminal(built), "f1_binary") == "f1_binary - 80.00 %"
    assert "f1_binary is the F1 of the label 'spam'." in " ".join(terminal(built).split())
    built.model.after.metrics = {"f1": 0.8}
    assert line(terminal(built), "f1") == "f1 - 80.00 %"


def test_printing_a_report_gives_its_tables() -> None:
    built = report()
    assert str(built) == terminal(built)
    assert repr(built) == "<Report of digits-vit: distill.logits, prune.weights, quant.qat>"
    assert built._repr_markdown_() == markdown(built)


def test_a_report_with_next_to_nothing_in_it() -> None:
    built = Report(cook="0.1.0", created="", model=report().model)
    built.model.before, built.model.after = state(0, 10, None), state(0, 10, None)
    built.model.before.bytes = built.model.after.macs = built.model.latency = None
    text = terminal(built)
    assert "no passes" in text
    assert line(text, "size on disk") == "size on disk - 10 B"
    assert "Windows overlap" not in text
    built.passes = report().passes
    built.passes[0].before = built.passes[0].after = state(0, 10, None)
    built.passes[0].window = None
    assert line(terminal(built), "distill.logits  ") == "distill.logits - 0.0 → 0.0 % 0 10 → 10 B -"


def test_the_main_metric_is_the_runs_own() -> None:
    built = report()
    assert built.train is not None
    built.train["metric"] = "loss"
    assert line(terminal(built), "quant.qat  ").endswith("0.1432 → 0.1432 (0)")


def test_an_exact_reload_and_a_plain_folder() -> None:
    built = report()
    assert built.reload is not None
    built.reload.exact = built.reload.plain = True
    assert "outputs equal to the bit; transformers alone loads it." in terminal(built)


def test_markdown_has_the_same_figures_and_the_note_in_a_column() -> None:
    text = markdown(report())
    assert "| size on disk | 1.63 MB | 453 kB | 3.61x smaller |" in text
    assert "| prune.weights | 90-539 | 0.0 → 58.9 % | 0 | 1.63 → 1.63 MB |" in text
    assert "| 60 % of 396,800 weights in 24 linear layers, one threshold |" in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({row.count("|") for row in table}) == 1


def test_plan_table() -> None:
    rows = [
        {
            "id": "prune.weights",
            "modules": 24,
            "parameters": 396_800,
            "zeros": 238_080,
            "parameters_after": 404_490,
            "bytes_after": 1_634_312,
            "window": [90, 539],
            "note": "60 % of each layer",
        },
        {
            "id": "quant.qat",
            "modules": 24,
            "parameters": 396_800,
            "zeros": 0,
            "parameters_after": 404_490,
            "bytes_after": None,
            "window": None,
            "note": "",
        },
    ]
    before = {"parameters": 404_490, "bytes": 1_634_312, "macs": 6_912_000}
    text = plan_table({"before": before, "after": {**before, "bytes": 452_780}, "rows": rows})
    assert line(text, "size on disk") == "size on disk 1.63 MB 453 kB 3.61x smaller"
    assert line(text, "prune.weights") == "prune.weights 90-539 24 397 k 238 k 404 k 1.63 MB"
    assert line(text, "quant.qat") == "quant.qat - 24 397 k 0 404 k -"
    assert "    60 % of each layer" in text
    assert widest(text) <= 100
    assert "pass" not in plan_table({"before": before, "after": before, "rows": []})


def test_ablation_table_compares_with_the_whole_recipe() -> None:
    def row(left_out: str | None, accuracy: float, size: int, zeros: int) -> dict[str, object]:
        metrics = {"accuracy": accuracy, "loss": 0.1}
        return {
            "left_out": left_out,
            "metrics": metrics,
            "bytes": size,
            "sparsity": zeros / 1000,
            "zeros": zeros,
        }

    text = ablation_table([row(None, 0.95, 1000, 600), row("prune.weights", 0.96, 2000, 0)])
    assert line(text, "nothing") == "nothing 60.0 % 600 1.00 kB 95.00 %"
    assert line(text, "prune.weights") == "prune.weights 0.0 % 0 2.00 kB 2.00x larger 96.00 % (+1.00)"
    assert "loss" not in text
    assert line(ablation_table([row("quant.qat", 0.9, 1, 0)]), "quant.qat") == "quant.qat 0.0 % 0 1 B 90.00 %"


def test_drawing() -> None:
    assert clean("a\nb\x1b[0m\ud800") == "a b [0m "
    assert shorten("prune.weights#12", 10) == "prune…s#12"
    assert shorten("short", 10) == "short"
    assert pipes([["a", "b"], ["x|y", "<script>"]], align="<>").splitlines()[2] == r"| x\|y | \<script\> |"
    drawn = grid([["name", "n"], ["x" * 50, "1"]], align="<>", width=20)
    assert widest(drawn) == 20


@pytest.mark.parametrize("draw", [terminal, markdown])
def test_drawing_does_not_change_the_report(draw) -> None:  # type: ignore[no-untyped-def]
    built = report()
    draw(built)
    assert built == report()


def test_losses_are_told_first_and_last() -> None:
    example = report()
    assert "unweighted" not in terminal(example)
    logged = [
        {"step": 1, "loss": {"task": 0.7, "task (unweighted)": 0.7}},
        {"step": 2, "loss": {"task (unweighted)": 0.6, "logits": 1.0, "logits (unweighted)": 0.5}},
        {"step": 2, "metrics": {"accuracy": 0.5}},
        {"step": 3, "loss": {"task (unweighted)": 0.5, "logits (unweighted)": 0.125, "gradient norm": 3.0}},
    ]
    example.train = {**(example.train or {}), "history": logged}
    assert loss_rows(example)[1:] == [["task", "0.7", "0.5"], ["logits", "0.5", "0.125"]]
    assert "loss, unweighted" in terminal(example)
    assert "| logits | 0.5 | 0.125 |" in " ".join(markdown(example).split())
    example.train["history"] = logged[:1]
    assert loss_rows(example) == []
