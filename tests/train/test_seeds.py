"""Seeds: functions of the numbers given, alike everywhere and unrelated to each other."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cook.train.seeds import mix, seed_everything

NUMBERS = st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=4)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@given(one=NUMBERS, other=NUMBERS)
def test_seeds_are_functions_of_their_parts(one, other):
    assert 0 <= mix(*one) < 2**63
    assert (mix(*one) == mix(*other)) == (one == other)


def test_a_seed_is_the_same_on_every_machine():
    # Checkpoints of one machine go on on another: this number may never change.
    assert mix(0, 1, 2, 3) == 3252311618909706447


def test_near_numbers_give_unrelated_seeds():
    # Each of 63 bits differs in about half of the pairs of neighbours.
    flips = [bin(mix(0, step) ^ mix(0, step + 1)).count("1") for step in range(200)]
    assert 29 < sum(flips) / len(flips) < 34


def test_all_generators_are_seeded():
    seed_everything(1, 2, 3)
    first = draws()
    seed_everything(1, 2, 4)
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    seed_everything(1, 2, 3)
    assert draws() == first
