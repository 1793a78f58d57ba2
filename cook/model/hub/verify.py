"""Load saved folders in a separate process, without any state of this one, and compare outputs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cook.errors import RunError
from cook.model.hub.folder import read_blueprint

STRANGER = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
order = json.load(open(sys.argv[1]))
torch.set_num_threads(order["threads"])
for case in order["cases"]:
    if case["cook"]:
        import cook
    elif "cook" in sys.modules:
        sys.exit("cook was imported before a plain folder was loaded")
    auto = getattr(transformers, case["auto_class"])
    model = auto.from_pretrained(case["folder"], dtype="auto", **case["options"])
    # Tensors mapped from a file can lie where kernels sum in another order; in memory of their own they
    # lie as those of the model that was saved.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    with torch.inference_mode():
        outputs = model(**{name: value.clone() for name, value in load_file(case["batch"]).items()})
    found = {name: value.contiguous().clone() for name, value in outputs.items() if torch.is_tensor(value)}
    save_file(found, case["outputs"])
"""
"""Run with `python -c`, so that no module of cook is imported unless the folder needs it."""


@dataclass(frozen=True)
class Case:
    """A folder to verify.

    Args:
        folder: as saved.
        batch: the model's inputs by name, on any device.
        expected: output of the model in memory: the logits, or several outputs by name.
        auto_class: `AutoModelForSequenceClassification` and the like.
        trust_remote_code: whether the folder's own code may run.
        attention: the attention implementation that `expected` was computed with.
    """

    folder: str | Path
    batch: Mapping[str, Tensor]
    expected: Tensor | Mapping[str, Tensor]
    auto_class: str
    trust_remote_code: bool = False
    attention: str | None = None


def verify(
    folder: str | Path,
    batch: Mapping[str, Tensor],
    expected: Tensor | Mapping[str, Tensor],
    *,
    auto_class: str,
    trust_remote_code: bool = False,
    attention: str | None = None,
) -> dict[str, Any]:
    """Load `folder` in a fresh process on the CPU, run `batch`, and compare with `expected`.

    A plain folder is loaded without cook, any other after `import cook` alone. The arguments are those of
    `Case`.

    Returns:
        `max_abs_difference`; `max_rel_difference`, to the largest expected magnitude; `exact`; `plain`.

    Raises:
        RunError: the folder does not load or run.
    """
    return verify_all([Case(folder, batch, expected, auto_class, trust_remote_code, attention)])[0]


def verify_all(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """`verify` for several folders in one process; plain ones come first, before cook is imported."""
    plain = [not getattr(read_blueprint(case.folder), "edits", []) for case in cases]
    with tempfile.TemporaryDirectory() as scratch:
        orders = [_order(Path(scratch), i, case, plain[i]) for i, case in enumerate(cases)]
        _run(Path(scratch), sorted(orders, key=lambda order: order["cook"]))
        found = [load_file(order["outputs"]) for order in orders]
    return [
        {**_compare(case.expected, outputs), "plain": is_plain}
        for case, outputs, is_plain in zip(cases, found, plain, strict=True)
    ]


def _order(scratch: Path, index: int, case: Case, plain: bool) -> dict[str, Any]:
    batch = scratch / f"{index}.batch.safetensors"
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in case.batch.items()}, batch)
    options: dict[str, Any] = {"trust_remote_code": case.trust_remote_code}
    if case.attention:
        options["attn_implementation"] = case.attention
    return {
        "folder": str(Path(case.folder).absolute()),
        "batch": str(batch),
        "outputs": str(scratch / f"{index}.outputs.safetensors"),
        "auto_class": case.auto_class,
        "options": options,
        "cook": not plain,
    }


def _run(scratch: Path, orders: list[dict[str, Any]]) -> None:
    script = scratch / "order.json"
    script.write_text(json.dumps({"threads": torch.get_num_threads(), "cases": orders}), encoding="utf-8")
    done = _start(script)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        where = orders[0]["folder"] if len(orders) == 1 else None
        raise RunError(
            f"the saved folder does not load back: {reason}", where=where, hint="\n  ".join(lines[-8:])
        )


def _start(script: Path) -> subprocess.CompletedProcess[str]:
    """Run STRANGER in a separate process with the same module search path."""
    paths = [str(Path(each).absolute()) for each in sys.path if each]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-c", STRANGER, str(script)],
        env=environment,
        cwd=script.parent,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _compare(expected: Tensor | Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Any]:
    wanted = {"logits": expected} if isinstance(expected, Tensor) else expected
    absolute = relative = 0.0
    exact = True
    for name, value in wanted.items():
        value = value.detach().cpu()
        other = found.get(name)
        if other is None or other.shape != value.shape:
            return {"max_abs_difference": math.inf, "max_rel_difference": math.inf, "exact": False}
        exact = exact and torch.equal(value, other)
        if not value.numel():
            continue
        difference = float((value.double() - other.double()).abs().max())
        scale = float(value.double().abs().max())
        difference = math.inf if math.isnan(difference) else difference
        absolute = max(absolute, difference)
        relative = max(relative, difference / scale if scale else (math.inf if difference else 0.0))
    return {"max_abs_difference": absolute, "max_rel_difference": relative, "exact": exact}
