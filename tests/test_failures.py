"""What goes wrong in training, as people read it."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cook.errors import CookError, RunError
from cook.failures import memory_errors, not_finite


@pytest.mark.parametrize(
    ("term", "value", "words"),
    [
        ("logits", float("nan"), "the loss term 'logits' is NaN at step 3 of 9"),
        ("task", float("-inf"), "the loss term 'task' is infinite"),
        ("gradient norm", float("inf"), "the gradient's norm is infinite"),
    ],
)
def test_what_is_not_finite_is_named(term, value, words):
    error = not_finite(term, value, 3, 9)
    assert words in error.message
    assert "learning_rate" in error.hint
    assert error.exit_code == 1


def run(error: BaseException, batch_size: int = 32, accumulate: int = 1) -> None:
    with memory_errors(SimpleNamespace(batch_size=batch_size, accumulate=accumulate)):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
    ],
)
def test_running_out_of_memory_names_the_accumulation_to_try(error):
    with pytest.raises(RunError, match="out of memory with micro-batches of 32 examples") as caught:
        run(error)
    assert "train.accumulate: 2" in caught.value.hint
    assert "batch_size 32 in micro-batches of 16" in caught.value.hint
    assert caught.value.__cause__ is error


@given(batch_size=st.integers(1, 500), accumulate=st.integers(1, 60))
def test_the_advice_is_what_the_loop_would_then_do(batch_size, accumulate):
    accumulate = min(accumulate, batch_size)
    micro = -(-batch_size // accumulate)
    with pytest.raises(RunError, match=f"micro-batches of {micro} examples") as caught:
        run(MemoryError(), batch_size, accumulate)
    if micro == 1:
        assert "max_length" in caught.value.hint
    else:
        assert f"micro-batches of {-(-batch_size // (2 * accumulate))}," in caught.value.hint


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("x"), CookError("y")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught:
        run(error)
    assert caught.value is error
