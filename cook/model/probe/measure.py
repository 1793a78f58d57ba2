"""Measures of a model: parameters, exact zeros, bytes, multiply-accumulates, latency."""

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
"""Bytes of a float32 scale: of an output row, or of a layer's inputs."""


@dataclass(frozen=True)
class Tally:
    """Logical parameters (an int8 weight counts, its scale does not), their exact zeros, stored bytes."""

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
    """Count a model as if `finish` were called now: masks folded, fake-quantised weights as integers.

    Args:
        model: with or without replaced layers; tied parameters count once. On the meta device zeros are 0.
        dtype: storage dtype of floating-point parameters; None for their own.
        masks: entries that they mark for removal are not counted.
        as_finished: False counts weights in their present state: as floats, without the transforms of
            replaced layers.
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
    """Every parameter once, with its module; weights stored as integers count as tied only to each other."""
    seen: set[tuple[int, Any]] = set()
    # Replaced layers first: their transforms apply to all that share the weight.
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
    """A tensor without entries to be removed: those of a vector, whole rows and columns of a matrix."""
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
    """Bytes of the input scales that will be stored: one per layer, also if layers share a weight."""
    standing = [each for each in model.modules() if isinstance(each, TransformedLinear) and each.stored_bits]
    fixed = sum(hasattr(inner, "scale") for each in standing for inner in each.input_transforms.values())
    return fixed * SCALE_BYTES


def _buffer_bytes(model: nn.Module, dtype: torch.dtype | None) -> int:
    """Bytes of persistent buffers, except those of transforms, which finishing removes."""
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
    """Set every module to eval mode in the context, and restore each mode after."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def macs(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of one forward: matrix products, attention products and convolutions.

    Zeros in a dense weight are counted. The result is half the floating-point operations counted by
    torch, with attention in its explicit form so that it is counted on every device.
    """
    return macs_by_module(model, batch)[""]


# The counter fails on a transposed weight under no_grad: it requires a gradient but has no grad_fn.
@torch.enable_grad()
def macs_by_module(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, int]:
    """`macs` of every module that has any, by its name; the model itself has the empty name."""
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
"""The number of examples from which the longest are chosen to be counted and timed."""


def longest(model: Any, batches: Iterable[Mapping[str, Tensor]], count: int = 1) -> dict[str, Tensor]:
    """The first `count` examples of the batch with the longest ones, repeated if there are fewer.

    Args:
        model: to be measured on them.

    Raises:
        CookError: there are no examples.
    """
    several = list(batches)
    if not several:
        raise CookError("there are no examples to count or time", hint="give calibration batches, or data")
    batch = max(several, key=lambda each: next(iter(each.values()))[0].numel())
    rows = torch.arange(count) % examples_in(batch)
    # A decoder's inputs may have to be derived from its labels.
    left = set() if getattr(model.config, "is_encoder_decoder", False) else {"labels"}
    return take({name: value for name, value in batch.items() if name not in left}, rows)


ROUNDS = 15
"""Timed rounds of `latency`."""


def latency(
    models: Mapping[str, nn.Module], batch: Mapping[str, Tensor], *, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Time one forward of each model, alternately in this process, which keeps its memory meanwhile.

    Args:
        models: by name, in eval mode, on one device.
        batch: inputs of each call.
        rounds: timed rounds, after two warm-up rounds.

    Returns:
        For each name the median and quartiles in milliseconds, and the time of every round: the n-th times
        of two models were measured consecutively. `{"before": {"median": ..., "times": [...]}}`.
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
    """The speed-up of `after` over `before`, from alternating measurements.

    Clock speeds vary while models are timed, which affects both times of one round equally, so the ratio is
    taken per round. The interval is that of the sign test for a median, which assumes no distribution.

    Args:
        before, after: times by round, in the same order and unit.

    Returns:
        `ratio`, the median over the rounds; `low` and `high`, its interval of at least 95 % confidence (for
        fewer than six rounds, which cannot provide that: the smallest and the largest ratio).
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
    """The computation of a model: its modules with the shapes and dtypes of their tensors, without values.

    Two models with equal results run the same kernels on the same shapes.
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
