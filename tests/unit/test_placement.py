"""Where a picture lies in a detector's input: Ultralytics' places and pixels, and every box back on the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ortserve import images, placement
from ortserve.manifest import Preprocessing
from tests import reference

SIZES = [(640, 480), (480, 640), (1, 1), (1, 300), (300, 1), (641, 479), (1999, 1333), (333, 77), (96, 64), (97, 64), (95, 63)]


def letterbox(height: int = 64, width: int = 96) -> Preprocessing:
    return Preprocessing(mode="letterbox", height=height, width=width, antialias=False, pad_value=114, mean=(0, 0, 0), std=(1, 1, 1))


def test_letterbox_is_ultralytics_to_within_one_level(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pictures = {f"{w}x{h}": random.integers(0, 256, (h, w, 3), dtype=np.uint8) for w, h in SIZES if min(w, h) > 1}
    want = reference.ultralytics_letterbox(pictures, (64, 96), tmp_path)
    for name, picture in pictures.items():
        have = images.preprocess(Image.fromarray(picture), letterbox())
        difference = np.abs(have.astype(int) - want[name])
        assert difference.max() <= 1, name  # OpenCV rounds its weights to 11 bits
        assert ((have == 114).all(axis=2) == (want[name] == 114).all(axis=2)).mean() > 0.99, name


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), mode=st.sampled_from(["letterbox", "stretch"]))
def test_boxes_come_back_to_the_picture(width: int, height: int, mode: str) -> None:
    how = letterbox().model_copy(update={"mode": mode})
    placed = placement.place((width, height), how)
    left, top = placed.corner
    assert left >= 0
    assert top >= 0
    assert left + placed.fitted[0] <= 96
    assert top + placed.fitted[1] <= 64
    picture = np.array([[0.0, 0.0, width, height], [width / 4, height / 3, width / 2, height / 1.5]])
    there = picture * np.tile(placed.scale, 2) + np.tile(placed.corner, 2)
    np.testing.assert_allclose(placed.back(there.astype(np.float32)), picture, atol=max(width, height) * 1e-5)
    np.testing.assert_array_equal(placed.back(np.array([[-1e6, -1e6, 1e6, 1e6]], np.float32)), [[0, 0, width, height]])


@pytest.mark.parametrize("size", SIZES)
def test_a_smaller_draft_lies_in_the_same_place(size: tuple[int, int]) -> None:
    placed = placement.place(size, letterbox())
    half = Image.new("RGB", (max(1, size[0] // 2), max(1, size[1] // 2)), (200, 10, 10))
    full = Image.new("RGB", size, (200, 10, 10))
    np.testing.assert_array_equal(placement.lay(half, placed, letterbox()), placement.lay(full, placed, letterbox()))
