"""Image classification: one label per image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets as hf
import numpy as np
import PIL
import pyarrow as pa
import torch
import transformers
from datasets import Dataset
from PIL import Image

from cook.data.files.images import MODES, decoded
from cook.data.rows import cache
from cook.data.tasks.classification import Classification

ROWS = 64
"""Images decoded together."""
CACHED = 8 << 30
"""Maximum bytes of pixels cached on disk; larger datasets are decoded when read."""


class ImageClassification(Classification):
    """One label per image: a decoded one, an array of bytes (height, width[, channels]) or a path."""

    name = "image-classification"
    auto_class = "AutoModelForImageClassification"
    processor = "image"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._shape: tuple[int, ...] = ()

    def plain_processor(self) -> Any:
        """Resizes to the config's `image_size` and scales to [-1, 1]; saved as `preprocessor_config.json`."""
        # Only the PIL variant works without torchvision.
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        size = getattr(self.config, "image_size", None)
        if size is None:
            raise self.error(
                "model.config", "the model has no image_size and comes without an image processor"
            )
        height, width = (size, size) if isinstance(size, int) else size
        half = [0.5] * self._channels
        return ViTImageProcessorPil(size={"height": height, "width": width}, image_mean=half, image_std=half)

    @property
    def _channels(self) -> int:
        return getattr(self.config, "num_channels", None) or 3

    def columns(self, dataset: Dataset) -> dict[str, list[str]]:
        return {"data.image": [self._column(dataset)], **super().columns(dataset)}

    def prepare(self, dataset: Dataset, processor: Any | None) -> Dataset:
        """`pixel_values` (the bytes of float32, channels first) and `labels`."""
        processor = processor or self.plain_processor()
        column = self._column(dataset)
        labels = self._label_ids(dataset)
        if self._channels not in MODES:
            raise self.error(
                "data.image", f"the model takes {self._channels} channels, images have 1, 3 or 4"
            )
        chosen = dataset.select_columns([column, self.data.label])
        self._shape = self._pixels(chosen[:1][column], processor, 0).shape[1:]

        def rows(block: dict[str, list[Any]], first: int = 0) -> dict[str, list[Any]]:
            pixels = self._pixels(block[column], processor, first)
            found = self._as_ids(block[self.data.label], dataset.features[self.data.label])
            return {"pixel_values": [image.tobytes() for image in pixels], "labels": found}

        if 4 * len(dataset) * int(np.prod(self._shape)) > CACHED:
            return chosen.with_transform(rows)
        key = cache.key(
            task=self.name,
            rows=cache.of_rows(dataset, [column], files=True),
            labels=labels,
            processor=cache.of_processor(processor),
            versions=[transformers.__version__, PIL.__version__],
            column=column,
            channels=self._channels,
        )
        schema = pa.schema({"pixel_values": pa.binary(), "labels": pa.int64()})

        def build() -> Iterator[pa.Table]:
            for first in range(0, len(chosen), ROWS):
                yield pa.table(rows(chosen[first : first + ROWS], first), schema=schema)

        return cache.stored(key, build)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`pixel_values` of shape `(rows, channels, height, width)` and `labels` of shape `(rows,)`."""
        pixels = np.frombuffer(bytearray().join(row["pixel_values"] for row in rows), np.float32)
        return {
            "pixel_values": torch.from_numpy(pixels.reshape(len(rows), *self._shape)),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    def _column(self, dataset: Dataset) -> str:
        listed = f"the columns are {', '.join(dataset.column_names)}"
        if self.data.image is not None:
            if self.data.image not in dataset.features:
                raise self.error("data.image", f"there is no column {self.data.image!r}", listed)
            return self.data.image
        others = [name for name in dataset.column_names if name != self.data.label]
        images = [name for name in others if isinstance(dataset.features[name], hf.Image)] or others
        if len(images) != 1:
            raise self.error("data.image", f"which column holds the images is not clear; {listed}", "name it")
        return images[0]

    def _pixels(self, images: list[Any], processor: Any, first: int) -> np.ndarray:
        """Float32 of shape `(images, channels, height, width)`."""
        arrays = []
        for row, image in enumerate(images, first):
            try:
                arrays.append(decoded(image, self._channels))
            except (OSError, ValueError, TypeError, Image.DecompressionBombError) as problem:
                raise self.error(
                    "data.image", f"the image of row {row} cannot be read: {problem}"
                ) from problem
        found = processor(images=arrays, return_tensors="np", input_data_format="channels_last")
        return np.ascontiguousarray(found["pixel_values"], dtype=np.float32)
