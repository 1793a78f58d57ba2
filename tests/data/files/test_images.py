"""Images: what they become, with a processor and without, and which are refused."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, BertConfig, ViTConfig

from cook.data.files.images import decoded
from cook.data.tasks import image_classification
from cook.errors import CookError
from tests.helpers import tiny
from tests.helpers.sections import bound, entries, own_cache, rows

__all__ = ["own_cache"]


def images(count=5, mode="L", size=(8, 8)) -> list[Image.Image]:
    source = np.random.RandomState(0)
    shape = (count, size[1], size[0]) if mode == "L" else (count, size[1], size[0], 3)
    return [Image.fromarray(array) for array in source.randint(0, 256, shape).astype(np.uint8)]


def vit(**changes) -> ViTConfig:
    return ViTConfig(**{"image_size": 8, "patch_size": 4, "num_channels": 1, **tiny.LABELS, **changes})


def picture_rows(pictures) -> datasets.Dataset:
    return rows(image=pictures, label=[row % 2 for row in range(len(pictures))])


def pixels(dataset, config=None, processor=None, **given) -> torch.Tensor:
    task = bound(dataset, config or vit(), name="image-classification", **given)
    found = task.prepare(dataset, processor)
    batch = task.collate([found[row] for row in range(len(found))])
    assert batch["labels"].tolist() == [row % 2 for row in range(len(found))]
    return batch["pixel_values"]


def test_images_are_scaled_to_one_with_the_plain_processor(tmp_path):
    pictures = images()
    expected = torch.stack([torch.tensor(np.asarray(image))[None] / 127.5 - 1 for image in pictures])
    found = pixels(picture_rows(pictures))
    assert torch.allclose(found, expected, atol=1e-6)
    arrays = picture_rows([np.asarray(image) for image in pictures])
    assert pixels(arrays).equal(found)
    for number, image in enumerate(pictures):
        image.save(tmp_path / f"{number}.png")
    paths = picture_rows([str(tmp_path / f"{number}.png") for number in range(len(pictures))])
    assert pixels(paths).equal(found)
    assert pixels(paths.cast_column("image", datasets.Image())).equal(found)


def test_images_get_the_model_s_size_and_channels():
    pictures = picture_rows(images(2, "RGB", (10, 6)))
    assert pixels(pictures, vit(image_size=(8, 4))).shape == (2, 1, 8, 4)
    assert pixels(pictures, vit(num_channels=3, image_size=16)).shape == (2, 3, 16, 16)
    assert pixels(picture_rows(images(2)), vit(num_channels=3)).shape == (2, 3, 8, 8)


def test_the_plain_processor_saves_and_loads(tmp_path):
    pictures = picture_rows(images())
    task = bound(pictures, vit(), name="image-classification")
    task.plain_processor().save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert pixels(pictures, processor=loaded).equal(pixels(pictures))


def test_many_pixels_are_read_as_they_are_needed(own_cache, monkeypatch):
    pictures = picture_rows(images())
    expected = pixels(pictures)
    kept = entries(own_cache)
    monkeypatch.setattr(image_classification, "CACHED", 0)
    assert pixels(pictures).equal(expected)
    assert entries(own_cache) == kept


def test_images_that_cannot_be_used_are_refused(tmp_path):
    def message(dataset, config=None, **given) -> str:
        with pytest.raises(CookError) as caught:
            bound(dataset, config or vit(), name="image-classification", **given).prepare(dataset, None)
        return str(caught.value)

    (tmp_path / "bad.png").write_bytes(b"no image")
    images(1)[0].save(tmp_path / "good.png")
    paths = picture_rows([str(tmp_path / "good.png"), str(tmp_path / "bad.png")])
    assert "the image of row 1" in message(paths)
    assert "from 0 to 255" in message(picture_rows([[[0.5, 0.25]]]))
    assert "no column 'photo'" in message(paths, image="photo")
    assert "not clear" in message(rows(a=["x"], b=["y"], label=[1]))
    assert "no image_size" in message(paths, BertConfig(**tiny.LABELS))
    assert "5 channels" in message(paths, vit(num_channels=5))


def saved(folder, name, array, **options):
    path = folder / name
    Image.fromarray(array).save(path, **options)
    return str(path)


def test_deep_grey_levels_keep_their_order(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    expected = np.rint(ramp / 257)
    several = [
        saved(tmp_path, "grey16.png", ramp.astype(np.uint16)),
        saved(tmp_path, "grey32.tif", ramp.astype(np.int32)),
        saved(tmp_path, "float.tif", (ramp / 65535).astype(np.float32)),
        ramp.astype(np.uint16),
        Image.fromarray(ramp.astype(np.uint16)),
    ]
    for image in several:
        assert np.abs(decoded(image, 1)[..., 0].astype(float) - expected).max() <= 1
    wide = saved(tmp_path, "wide.tif", (ramp / 100).astype(np.float32))
    dataset = picture_rows([wide])
    with pytest.raises(CookError, match=r"values go from 0 to 655\.35, expected 0 to 1"):
        bound(dataset, vit(), name="image-classification").prepare(dataset, None)


def test_one_image_is_the_same_however_it_comes(tmp_path):
    (picture,) = images(1, "RGB", (6, 10))
    turned = Image.Exif()
    turned[0x0112] = 6  # taken with the camera on its side
    upright, deep = str(tmp_path / "turned.png"), str(tmp_path / "deep.png")
    picture.save(upright, exif=turned)
    Image.fromarray(np.asarray(picture)[..., 0].astype(np.uint16) * 257).save(deep)
    (tmp_path / "folder" / "a").mkdir(parents=True)
    for path in (upright, deep):
        by_path, feature = picture_rows([path]), picture_rows([path]).cast_column("image", datasets.Image())
        content = rows(image=[{"bytes": Path(path).read_bytes(), "path": None}], label=[0])
        by_bytes = content.cast_column("image", datasets.Image())
        found = [pixels(each, vit(num_channels=3)) for each in (by_path, feature, by_bytes)]
        assert found[0].equal(found[1])
        assert found[0].equal(found[2])
    assert decoded(upright, 3).shape == (6, 10, 3)
    assert np.array_equal(decoded(upright, 3), np.rot90(np.asarray(picture), 3))


def test_a_changed_file_is_read_again(tmp_path, own_cache):
    first, second = images(2)
    path = tmp_path / "image.bmp"
    first.save(path)
    state = path.stat()
    by_path = picture_rows([str(path)])
    several = [by_path, by_path.cast_column("image", datasets.Image())]
    before = [pixels(each) for each in several]
    second.save(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    for each, was in zip(several, before, strict=True):
        assert not pixels(each).equal(was)
