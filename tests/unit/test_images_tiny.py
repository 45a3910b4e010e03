"""Which pictures an event loop may decode itself: those that are over in a moment whatever is in them."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from ortserve import images
from ortserve.manifest import Preprocessing


def black(size: tuple[int, int], format: str = "PNG") -> bytes:
    """A picture of that (width, height) as Pillow writes it."""
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format", "size", "side", "tiny"),
    [
        ("PNG", (128, 128), 256, True),
        ("PNG", (16, 128), 32, True),
        ("PNG", (129, 16), 32, False),
        ("PNG", (128, 15), 32, False),
        ("PNG", (32, 32), 257, False),
        ("JPEG", (32, 32), 32, False),
    ],
)
def test_it_has_few_pixels_and_comes_to_few(format: str, size: tuple[int, int], side: int, tiny: bool) -> None:
    data = black(size, format)
    for edge in ({"height": side, "width": 32}, {"height": 32, "width": side}, {"height": 32, "width": 32, "resize_size": side}):
        assert images.tiny(memoryview(data), Preprocessing(mode="crop", mean=(0, 0, 0), std=(1, 1, 1), **edge)) is tiny


def test_it_has_few_bytes() -> None:
    how = Preprocessing(mode="crop", height=32, width=32, mean=(0, 0, 0), std=(1, 1, 1))
    start = black((32, 32))[:24]
    assert images.tiny(start, how)  # what follows is for `load` to refuse
    assert not images.tiny(start[:23], how)
    assert images.tiny(start.ljust(16_384, b"."), how)
    assert not images.tiny(start.ljust(16_385, b"."), how)
