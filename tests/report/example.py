"""A realistic report: a small ViT on the digits, with all three passes in one loop."""

from __future__ import annotations

from typing import Any

from cook.report import Model, PassRow, Reload, Report, State


def state(zeros: int, size: int, accuracy: float | None, **more: Any) -> State:
    """A state of a model of 404,490 parameters."""
    metrics = {} if accuracy is None else {"accuracy": accuracy, "loss": 0.1432}
    share = zeros / 404_490
    return State(
        parameters=404_490, zeros=zeros, sparsity=share, bytes=size, macs=6_912_000, metrics=metrics, **more
    )


def report() -> Report:
    """A new one at each call, so that tests may change it."""
    start, end = state(128, 1_634_312, 0.9694), state(238_080, 452_780, 0.9528)
    pruned = state(238_080, 1_634_312, 0.9556)
    return Report(
        cook="0.1.0",
        created="2026-01-02T03:04:05+00:00",
        recipe={"name": "quickstart.yaml", "digest": "ab" * 32},
        model=Model(
            name="digits-vit",
            before=start,
            after=end,
            source_bytes=817_156,
            float32_bytes=1_617_960,
            latency={
                "batch": 1,
                "shape": [1, 1, 8, 8],
                "before_ms": 1.214,
                "after_ms": 1.371,
                "ratio": 1.129,
                "spread": 0.031,
                "rounds": 60,
            },
            auto_class="AutoModelForImageClassification",
        ),
        passes=[
            PassRow(
                id="distill.logits",
                name="distill.logits",
                window=(0, 899),
                before=start,
                after=end,
                options={"temperature": 4, "weight": 0.7},
                facts={"teacher": "self", "loss": "ce", "temperature": 4},
            ),
            PassRow(
                id="prune.weights",
                name="prune.weights",
                window=(90, 539),
                before=start,
                after=end,
                states=[
                    state(128, 1_634_312, 0.9694, when="attached", step=0),
                    state(128, 1_634_312, 0.9611, when="start", step=90),
                    state(238_080, 1_634_312, 0.9556, when="end", step=540),
                ],
                facts={"note": "60 % of 396,800 weights in 24 linear layers, one threshold"},
            ),
            PassRow(
                id="quant.qat",
                name="quant.qat",
                window=(540, 899),
                before=pruned,
                after=end,
                facts={"weights": "int8", "activations": "int8", "layers": 24, "frozen": True},
            ),
        ],
        train={"steps": 900, "epochs": 20.0, "seconds": 71.4, "selected": "last", "selected_step": 900},
        reload=Reload(max_abs_difference=2.1e-6, max_rel_difference=4e-7, exact=False, plain=False),
        environment={"device": "cpu", "precision": "fp32", "threads": 2, "seed": 0, "torch": "2.13.0"},
    )
