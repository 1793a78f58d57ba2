"""One seed per micro-step, so that a resumed run is bitwise identical."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def mix(*parts: int) -> int:
    """Mix integers into a 63-bit seed; similar integers give unrelated seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(*parts: int) -> None:
    """Seed Python, numpy and torch (all devices) from these integers."""
    seed = mix(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
