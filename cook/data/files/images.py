"""Images as arrays of bytes: one decoder for paths, files, arrays and decoded images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""The PIL mode for each number of channels."""
DEEP = 65535
"""The largest 16-bit value."""


def decoded(image: Any, channels: int) -> np.ndarray:
    """The pixels of an image, with its EXIF orientation applied.

    Args:
        image: a PIL image, a path, or an array (height, width[, channels]). 16-bit grey levels and float
            values from 0 to 1 are scaled to bytes: converting would clip them.
        channels: 1, 3 or 4.

    Returns:
        uint8 of shape `(height, width, channels)`.

    Raises:
        OSError: a file cannot be read, or is not an image.
        ValueError: the range of values is unknown.
    """
    found = _opened(image)
    found = ImageOps.exif_transpose(found) or found
    array = np.asarray(_in_bytes(found).convert(MODES[channels]))
    return array.reshape(*array.shape[:2], channels)


def _opened(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, Path)):
        return Image.open(image)
    array = np.asarray(image)
    if array.dtype == np.uint16:
        array = _scaled(array, DEEP)
    elif array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.integer) or not _fits(array, 255):
            raise ValueError("expected an image, a path, or an array of bytes from 0 to 255 or of uint16")
        array = array.astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def _in_bytes(image: Image.Image) -> Image.Image:
    """Convert an image with deep grey levels (PIL's modes I, I;16 and F) to bytes; others are unchanged."""
    if image.mode.startswith("I"):
        array, largest = np.asarray(image), float(DEEP)
    elif image.mode == "F":
        array, largest = np.asarray(image), 1.0
    else:
        return image
    if not _fits(array, largest):
        low, high = float(array.min()), float(array.max())
        found = f"its values go from {low:g} to {high:g}"
        raise ValueError(f"{found}, expected 0 to {largest:g} in an image of mode {image.mode}")
    return Image.fromarray(_scaled(array, largest))


def _fits(array: np.ndarray, largest: float) -> bool:
    return bool(array.size and np.isfinite(array).all() and array.min() >= 0 and array.max() <= largest)


def _scaled(array: np.ndarray, largest: float) -> np.ndarray:
    return np.rint(array.astype(np.float64) * (255 / largest)).astype(np.uint8)
