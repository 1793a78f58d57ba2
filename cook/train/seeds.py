"""One seed a micro-step, so that a run that was interrupted goes on bit for bit."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def mix(*parts: int) -> int:
    """Whole numbers mixed into a seed of 63 bits; near numbers give unrelated seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(*parts: int) -> None:
    """Seed Python, numpy and torch (all devices) from these numbers."""
    seed = mix(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
