"""Pre-processing gives torchvision's pixels, every one of them, on all sizes. The reference is torchvision on the same PIL picture."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from ortserve import images, placement
from ortserve.errors import ImageTooLarge
from ortserve.manifest import Preprocessing

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
SIZES = [
    (500, 375),
    (375, 500),
    (256, 256),
    (1, 1),
    (2, 3),
    (1, 100),
    (100, 1),
    (255, 257),
    (640, 479),
    (224, 224),
    (1021, 769),
    (341, 256),
]
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic", "lanczos")


def picture(width: int, height: int) -> Image.Image:
    """Random pixels: what is off by one weight anywhere shows."""
    return Image.fromarray(np.random.default_rng(width * 65536 + height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def how(mode: Literal["crop", "stretch", "pad"], height: int, width: int, **options: Any) -> Preprocessing:
    """A manifest's pre-processing; the graph's normalisation does not matter here."""
    return Preprocessing(mode=mode, height=height, width=width, mean=(0, 0, 0), std=(1, 1, 1), **options)


def cropped(image: Image.Image, wanted: Preprocessing) -> NDArray[np.uint8]:
    """torchvision's `ImageClassification` on a PIL picture, before it becomes a tensor."""
    resized = reference.resize(image, [wanted.resize_size], InterpolationMode(wanted.interpolation), antialias=True)
    return np.asarray(reference.center_crop(resized, [wanted.height, wanted.width]))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("resize_size", "crop"), [(256, 224), (232, 224), (224, 224), (40, 41), (33, 64)])
@pytest.mark.parametrize(
    "size",
    [(500, 375), (375, 500), (256, 256), (1, 1), (2, 3), (1, 100), (100, 1), (255, 257), (640, 479), (224, 224), (1021, 769), (341, 256)],
)
def test_crop_equals_torchvision(size: tuple[int, int], resize_size: int, crop: int, interpolation: Interpolation) -> None:
    image, wanted = picture(*size), how("crop", crop, crop, resize_size=resize_size, interpolation=interpolation)
    result = images.preprocess(image, wanted)
    assert np.array_equal(result, cropped(image, wanted))
    assert (result.dtype, result.flags.c_contiguous) == (np.uint8, True)


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    resize_size=st.sampled_from([1, 2, 7, 16, 32, 48, 64, 96, 128]),
    crop_height=st.integers(1, 140),
    crop_width=st.integers(1, 140),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
@example(width=3, height=1, resize_size=2, crop_height=5, crop_width=3, interpolation="bilinear")
def test_crop_equals_torchvision_on_any_size(
    width: int, height: int, resize_size: int, crop_height: int, crop_width: int, interpolation: Interpolation
) -> None:
    if max(width, height) > images.MAX_ASPECT * min(width, height):
        width = height
    image, wanted = picture(width, height), how("crop", crop_height, crop_width, resize_size=resize_size, interpolation=interpolation)
    assert np.array_equal(images.preprocess(image, wanted), cropped(image, wanted))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(500, 375), (20, 31), (1, 1), (1, 5000), (5000, 1)])
def test_stretch_equals_torchvision(size: tuple[int, int], interpolation: Interpolation) -> None:
    image, wanted = picture(*size), how("stretch", 20, 31, interpolation=interpolation)
    expected = reference.resize(image, [20, 31], InterpolationMode(interpolation), antialias=True)
    assert np.array_equal(images.preprocess(image, wanted), np.asarray(expected))


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), value=st.integers(0, 255), interpolation=st.sampled_from(INTERPOLATIONS))
def test_pad_equals_pillows(width: int, height: int, value: int, interpolation: Interpolation) -> None:
    image, wanted = picture(width, height), how("pad", 40, 57, pad_value=value, interpolation=interpolation)
    if min(40 / height, 57 / width) * min(width, height) < 0.6:
        return  # Pillow's own lets a side vanish: below
    expected = ImageOps.pad(image, (57, 40), placement.RESAMPLING[interpolation], color=(value,) * 3)
    assert np.array_equal(images.preprocess(image, wanted), np.asarray(expected))


def test_pad_keeps_one_pixel_of_the_thinnest_picture() -> None:
    result = images.preprocess(Image.new("RGB", (4000, 1), (9, 8, 7)), how("pad", 20, 20, pad_value=255))
    assert (result != 255).any(axis=-1).sum() == 20


@pytest.mark.parametrize("size", [(101, 1), (2, 201), (40_000, 3)])
def test_a_crop_of_a_sliver_is_refused_before_it_is_resized(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge, match=f"at most 100 times the shorter, got {size[0]} x {size[1]} pixels"):
        images.preprocess(Image.new("RGB", size), how("crop", 224, 224, resize_size=256))
