"""The memory of a distilled language model's loss in chunks, against the same loss written plainly.

    python -m benchmarks.memory

Each loss goes forward and backward in a process of its own, over logits of the student and the teacher that
are there before: what counts is the peak beyond them, the student's gradient included. On a CPU it is the
resident memory that Linux tells of the process, on a GPU what torch allocated. The plain loss picks the rows
that count, takes them to float32, and calls log_softmax, kl_div and backward.

The columns: bytes beyond the logits, their ratio, the ratio with the logits counted in, that of the times,
how far the two gradients are from each other and each from float64's, as shares of a gradient's length.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.pairs import machine
from cook.distill.logits import labelled
from cook.distill.losses.chunked import soft_cross_entropy

BAR = 1 / 3
TEMPERATURE = 2.0
SCALE = 0.7
"""A weight on the loss, which the backward pass has to multiply in."""


def plainly(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What one writes."""
    rows = labels[:, 1:] != -100
    guess = functional.log_softmax(student[:, :-1][rows].float() / TEMPERATURE, dim=-1)
    wanted = functional.log_softmax(teacher[:, :-1][rows].float() / TEMPERATURE, dim=-1)
    return functional.kl_div(guess, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2


def in_chunks(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What cook does."""
    rows = labelled(student, labels, causal=True)
    return soft_cross_entropy(student, teacher, TEMPERATURE, rows=rows)


LOSSES = {"plain": plainly, "chunked": in_chunks}


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory, now or at most since `forget`."""
    told = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert told
    return int(told[1]) * 1024


def forget() -> None:
    """Begin the peak anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")


def step(name: str, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """Forward and backward; the seconds that it took."""
    inputs[0].grad = None
    start = time.perf_counter()
    (SCALE * LOSSES[name](*inputs)).backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(name: str, dtype: torch.dtype, shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """Bytes and seconds of one loss, its gradient's error, and, of the plain one, the way to the other's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    student, teacher = ((3 * torch.randn(shape, device=device)).to(dtype) for _ in range(2))
    labels = torch.randint(0, shape[-1], shape[:2], device=device)
    labels[torch.rand(shape[:2], device=device) < 0.1] = -100
    inputs = student.requires_grad_(), teacher, labels
    little = tuple(each[:1, :2].detach() for each in inputs)
    LOSSES[name](little[0].requires_grad_(), *little[1:]).backward()  # loads what is loaded once
    forget()
    before = torch.cuda.memory_allocated() if device == "cuda" else resident()
    step(name, inputs)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident(peak=True)
    seconds = statistics.median(step(name, inputs) for _ in range(repeats))
    told = {"beyond": peak - before, "inputs": sum(each.nbytes for each in inputs), "seconds": seconds}
    own = gradient(student)
    told["error"] = apart(own, inputs)
    if name == "plain":
        step("chunked", inputs)
        told["apart"] = float((gradient(student) - own).norm() / own.norm())
    return told


def gradient(leaf: Tensor) -> Tensor:
    """The gradient that must be there."""
    assert leaf.grad is not None
    return leaf.grad


def apart(found: Tensor, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """How far a gradient is from the one in float64, of its length; an example at a time."""
    student, teacher, labels = inputs
    count = (labels[:, 1:] != -100).sum()
    error = size = 0.0
    for example in range(len(labels)):
        logits = [each[example].detach().double() / TEMPERATURE for each in (student, teacher)]
        exact = logits[0].softmax(-1) - logits[1].softmax(-1)
        exact[:-1][labels[example, 1:] == -100] = 0
        exact[-1] = 0
        exact *= SCALE * TEMPERATURE / count
        error += float((found[example].double() - exact).square().sum())
        size += float(exact.square().sum())
    return math.sqrt(error / size)


def alone(name: str, dtype: str, args: argparse.Namespace) -> dict[str, float]:
    """`measured` in a process of its own."""
    shape = [str(size) for size in args.shape]
    command = [sys.executable, "-m", "benchmarks.memory", "--one", name, dtype, "--shape", *shape]
    command += ["--repeats", str(args.repeats)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(told)
    return found


def main() -> None:
    """A line for each dtype of the logits; the exit code is 1 above the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", type=int, nargs=3, default=[8, 512, 50_257], help="batch tokens vocabulary"
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed steps after the one that is weighed")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--one", nargs=2, metavar=("LOSS", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, dtype = args.one
        print(json.dumps(measured(name, getattr(torch, dtype), tuple(args.shape), args.repeats)))
        return
    print(f"{' x '.join(map(str, args.shape))}; {machine()}\n")
    print(
        "| logits | beyond them, plain | chunked | ratio | in all | time | apart | error, plain | chunked |"
    )
    print("| --- |" + " ---: |" * 8)
    missed = False
    for dtype in args.dtypes:
        plain, ours = (alone(name, dtype, args) for name in LOSSES)
        beyond = ours["beyond"] / plain["beyond"]
        whole = (ours["beyond"] + ours["inputs"]) / (plain["beyond"] + plain["inputs"])
        missed |= beyond > BAR
        cells = [dtype, *(f"{each['beyond'] / 2**20:,.0f} MiB" for each in (plain, ours))]
        cells += [f"{beyond:.3f}", f"{whole:.3f}", f"{ours['seconds'] / plain['seconds']:.2f}"]
        cells += [f"{each:.1e}" for each in (plain["apart"], plain["error"], ours["error"])]
        print(f"| {' | '.join(cells)} |", flush=True)
    sys.exit(missed)


if __name__ == "__main__":
    main()
