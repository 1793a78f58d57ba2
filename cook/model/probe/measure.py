"""What a model amounts to: parameters, exact zeros, bytes, multiply-accumulates, latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cook.errors import CookError
from cook.model.nn.integer import IntLinear, packed_columns, unpack
from cook.model.nn.masks import Masks
from cook.model.nn.transformed import TransformedLinear
from cook.model.probe.batch import examples_in, take
from cook.model.probe.memory import kept

SCALE_BYTES = 4
"""A float32 scale: of an output row, or of a layer's inputs."""


@dataclass(frozen=True)
class Tally:
    """Logical parameters (an int8 weight is one, its scale is none), exact zeros among them, stored bytes."""

    parameters: int
    zeros: int
    bytes: int


@torch.no_grad()
def tally(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    masks: Masks | None = None,
    *,
    as_finished: bool = True,
) -> Tally:
    """Count a model as `finish` would leave it now: masks folded, fake-quantised weights as integers.

    Args:
        model: with or without stand-ins; tied parameters are counted once. On the meta device all
            zeros are 0.
        dtype: what floating-point parameters are stored in; their own when None.
        masks: what they say will leave is not counted.
        as_finished: False counts weights as they are held now: in floats, without what a stand-in does to
            them.
    """
    leaving = masks.leaving if masks is not None else lambda _: None
    counts = [
        _weigh(module, name, parameter, leaving(parameter), dtype, as_finished)
        for module, name, parameter in _weights(model)
    ]
    parameters, zeros, size = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    scales = _input_scale_bytes(model) if as_finished else 0
    return Tally(parameters, zeros, size + _buffer_bytes(model, dtype) + scales)


def _weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every parameter once, with the module that holds it; as integers a weight is tied to such alone."""
    seen: set[tuple[int, Any]] = set()
    # Stand-ins first: what they do to a weight holds for all that share it.
    for module in sorted(model.modules(), key=lambda each: not isinstance(each, TransformedLinear)):
        for name, parameter in module.named_parameters(recurse=False):
            stands = isinstance(module, TransformedLinear) and name == "weight"
            key = id(parameter), module.stored_bits if stands else None
            if key not in seen:
                seen.add(key)
                yield module, name, parameter


def _weigh(
    module: nn.Module,
    name: str,
    tensor: Tensor,
    leaving: Tensor | None,
    dtype: torch.dtype | None,
    as_finished: bool,
) -> tuple[int, int, int]:
    if isinstance(module, IntLinear):
        if name in ("scale", "input_scale"):
            return 0, 0, _bytes(tensor, None)
        if name == "weight":
            values = unpack(module.weight, module.bits, module.in_features)
            return values.numel(), _zeros(values), _bytes(tensor, None)
    if as_finished and isinstance(module, TransformedLinear) and name == "weight":
        flipped = leaving.t() if leaving is not None and module.transposed else leaving
        values = _left(module.effective(), flipped)
        if bits := module.stored_bits:
            rows, columns = values.shape
            size = rows * (packed_columns(columns, bits) + SCALE_BYTES)
            return values.numel(), _zeros(values), size
        return values.numel(), _zeros(values), _bytes(tensor, dtype)
    values = _left(tensor, leaving)
    return values.numel(), _zeros(values), _bytes(values, dtype)


def _left(values: Tensor, leaving: Tensor | None) -> Tensor:
    """A tensor without what leaves of each axis: entries of a vector, whole rows and columns of a matrix."""
    if leaving is None:
        return values
    for axis in range(values.ndim):
        others = [each for each in range(values.ndim) if each != axis]
        stays = (~leaving).any(others) if others else ~leaving
        values = values.index_select(axis, stays.nonzero()[:, 0].to(values.device))
    return values


def _zeros(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else int(tensor.numel() - torch.count_nonzero(tensor))


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (
        dtype.itemsize if dtype and tensor.is_floating_point() else tensor.element_size()
    )


def _input_scale_bytes(model: nn.Module) -> int:
    """Of the scales that inputs will be stored with: one each, also where layers share a weight."""
    standing = [each for each in model.modules() if isinstance(each, TransformedLinear) and each.stored_bits]
    fixed = sum(hasattr(inner, "scale") for each in standing for inner in each.input_transforms.values())
    return fixed * SCALE_BYTES


def _buffer_bytes(model: nn.Module, dtype: torch.dtype | None) -> int:
    """The persistent buffers, without those of transforms, which finish takes away."""
    standing = [module for module in model.modules() if isinstance(module, TransformedLinear)]
    passing = {id(inner) for module in standing for inner in module.modules()}
    total = 0
    for module in model.modules():
        if id(module) not in passing:
            hidden = module._non_persistent_buffers_set
            buffers = module.named_buffers(recurse=False)
            total += sum(_bytes(tensor, dtype) for name, tensor in buffers if name not in hidden)
    return total


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside; afterwards each in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def macs(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of one forward: matrix products, attention products and convolutions.

    Zeros in a dense weight are computed with and counted. Half the floating-point operations that
    torch's own counter finds, with attention written out so that it is counted on every device.
    """
    return macs_by_module(model, batch)[""]


# The counter trips over a transposed weight under no_grad: it requires a gradient and has no function.
@torch.enable_grad()
def macs_by_module(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, int]:
    """The same for every module that has any, by its name; that of the model itself is empty."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch)
    root = type(model).__name__
    counts = {
        name.removeprefix(root).removeprefix("."): sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
        if name == root or name.startswith(f"{root}.")
    }
    return {**counts, "": int(counter.get_total_flops()) // 2}


EXAMPLES = 64
"""Examples among which the longest are counted and timed."""


def longest(model: Any, batches: Iterable[Mapping[str, Tensor]], count: int = 1) -> dict[str, Tensor]:
    """The first of the batch with the longest examples, over and over where there are fewer.

    Args:
        model: that is to be counted or timed with them.

    Raises:
        CookError: there are none.
    """
    several = list(batches)
    if not several:
        raise CookError("there are no examples to count or time", hint="give calibration batches, or data")
    batch = max(several, key=lambda each: next(iter(each.values()))[0].numel())
    rows = torch.arange(count) % examples_in(batch)
    # A decoder's inputs may have to be made from its labels.
    left = set() if getattr(model.config, "is_encoder_decoder", False) else {"labels"}
    return take({name: value for name, value in batch.items() if name not in left}, rows)


ROUNDS = 15
"""Timed rounds of `latency`."""


def latency(
    models: Mapping[str, nn.Module], batch: Mapping[str, Tensor], *, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Time one forward of each model, in alternation in this process, which keeps its memory meanwhile.

    Args:
        models: by name, in eval mode, on one device.
        batch: what each is called with.
        rounds: timed rounds after two that are not.

    Returns:
        For each name the median and the quartiles of milliseconds, and the time of every round: the n-th
        times of two models were taken one after the other. `{"before": {"median": ..., "times": [...]}}`.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    device = next(iter(batch.values())).device
    with torch.inference_mode(), kept():
        for turn in range(rounds + 2):
            for name, model in models.items():
                _wait(device)
                start = time.perf_counter()
                model(**batch)
                _wait(device)
                if turn >= 2:
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high, "times": values}


def paired_ratio(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """How many times faster `after` is, from times taken in turns.

    Machines slow down and speed up while they are timed, which both times of one round share: the ratio is
    taken in each round. The interval is that of the sign test for a median, which assumes no distribution.

    Args:
        before, after: times by round, in the same order and unit.

    Returns:
        `ratio`, the median over the rounds; `low` and `high`, its interval of at least 95 % confidence (of
        fewer than six rounds, which cannot give that: the smallest and the largest ratio).
    """
    ratios = sorted(was / now for was, now in zip(before, after, strict=True))
    rounds = len(ratios)
    outside = 0
    below, total = 0.0, 2.0**rounds
    while (below := below + math.comb(rounds, outside) / total) <= 0.025:
        outside += 1
    first = max(0, outside - 1)
    return {"ratio": statistics.median(ratios), "low": ratios[first], "high": ratios[rounds - 1 - first]}


def operations(model: nn.Module) -> list[tuple[str, str, tuple[int, ...], torch.dtype | None]]:
    """What a model computes with: its modules and the shapes and types of what they hold, without values.

    Two models with equal ones run the same kernels on the same shapes.
    """
    found: list[tuple[str, str, tuple[int, ...], torch.dtype | None]] = []
    for name, module in model.named_modules():
        found.append((name, type(module).__name__, (), None))
        for key, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            found.append((name, key, tuple(value.shape), value.dtype))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
