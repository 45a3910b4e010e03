"""The compiled resampling gives Pillow's pixels, every one of them."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, _imaging

from ortserve import compiled, resample

FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
Function = Callable[[Image.Image, tuple[int, int], resample.Box, Image.Resampling], NDArray[np.uint8] | None]


def by_pillow(image: Image.Image, size: tuple[int, int], box: resample.Box, resampling: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(image.resize(size, resampling).crop(box))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 65536 + height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def extremes(width: int, height: int) -> Image.Image:
    """Black and white at random: what bicubic and Lanczos shoot over both ends with."""
    return Image.fromarray(np.random.default_rng(width * 65536 + height).integers(0, 2, (height, width, 3), dtype=np.uint8) * np.uint8(255))


@pytest.fixture(scope="module", params=["", "-DPLAIN"], ids=["vectors of this machine", "plain"])
def function(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Function:
    """The compiled function, as it is served and as machines without AVX2 have it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiled, "FOLDER", Path(shutil.copytree(compiled.FOLDER, tmp_path_factory.mktemp("pixels") / "native")))
        patched.setattr(compiled, "FLAGS", (*compiled.FLAGS, *request.param.split(), "-Wall", "-Wextra", "-Werror"))
        return resample._function(ctypes.CDLL(str(compiled.compile_here())))


@st.composite
def resizes(draw: st.DrawFn) -> tuple[Image.Image, tuple[int, int], resample.Box, Image.Resampling]:
    """A picture, a size, a box inside that, a filter."""
    side = st.integers(1, 300) | st.integers(1, 12) | st.sampled_from((1, 2, 3, 4, 224, 256))
    source = (draw(side), draw(side))
    size = draw(st.tuples(side, side) | st.tuples(st.just(source[0]), side) | st.tuples(side, st.just(source[1])))
    left, top = (draw(st.integers(0, length - 1)) for length in size)
    box = (left, top, draw(st.integers(left + 1, size[0])), draw(st.integers(top + 1, size[1])))
    return draw(st.sampled_from((noise, extremes)))(*source), size, box, draw(st.sampled_from(FILTERS))


@settings(max_examples=600, deadline=None)
@given(resizes())
@example((noise(500, 375), (341, 256), (58, 16, 282, 240), Image.Resampling.BILINEAR))
@example((noise(108, 240), (57, 127), (0, 0, 57, 127), Image.Resampling.BICUBIC))  # down first
@example((noise(3, 3000), (224, 224), (0, 0, 224, 224), Image.Resampling.LANCZOS))
@example((noise(3000, 3), (224, 224), (0, 0, 224, 224), Image.Resampling.LANCZOS))
@example((noise(9, 7), (1000, 900), (990, 890, 1000, 900), Image.Resampling.BICUBIC))
def test_every_pixel_is_pillows(function: Function, resize: tuple[Image.Image, tuple[int, int], resample.Box, Image.Resampling]) -> None:
    pixels = function(*resize)
    assert pixels is not None
    assert np.array_equal(pixels, by_pillow(*resize))


def test_a_picture_larger_than_pillows_blocks_goes_the_same_way(function: Function) -> None:
    _imaging.set_block_size(resample._ONE_BLOCK)
    image = noise(2600, 2100)  # 21 MB
    size, box = (300, 242), (38, 9, 262, 233)
    pixels = function(image, size, box, Image.Resampling.BILINEAR)
    assert pixels is not None
    assert np.array_equal(pixels, by_pillow(image, size, box, Image.Resampling.BILINEAR))


def test_a_picture_in_several_blocks_is_pillows() -> None:
    block = _imaging.get_block_size()
    _imaging.set_block_size(4096)
    try:
        image = noise(300, 200)
    finally:
        _imaging.set_block_size(block)
    with pytest.raises(ValueError, match="not contiguous"):
        image.__arrow_c_array__()
    for resampling in FILTERS:
        expected = by_pillow(image, (90, 80), (5, 6, 70, 80), resampling)
        assert np.array_equal(resample.resized(image, (90, 80), (5, 6, 70, 80), resampling), expected)


@pytest.mark.parametrize(
    "box", [(-7, -9, 60, 70), (3, 2, 50, 40), (0, 0, 31, 23), (-50, -50, -10, -10), (31, 23, 40, 40), (10, -3, 20, 30)]
)
@pytest.mark.parametrize("resampling", [Image.Resampling.NEAREST, *FILTERS])
def test_what_lies_outside_is_black(box: resample.Box, resampling: Image.Resampling) -> None:
    for image, size in ((noise(57, 44), (31, 23)), (noise(31, 23), (31, 23)), (noise(9, 7), (31, 23))):
        pixels = resample.resized(image, size, box, resampling)
        assert np.array_equal(pixels, by_pillow(image, size, box, resampling))
        assert pixels.flags.c_contiguous
        assert not pixels.flags.writeable


def test_many_threads_at_once(function: Function) -> None:
    work = [(noise(200 + i, 150 + 3 * i), (90, 70), (i, i, 80, 60), FILTERS[i % 3]) for i in range(16)]
    expected = [by_pillow(*resize) for resize in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for pixels, wanted in zip(pool.map(lambda resize: function(*resize), work), expected, strict=True):
                assert pixels is not None
                assert np.array_equal(pixels, wanted)


def test_nothing_is_kept(function: Function) -> None:
    image = noise(2000, 1500)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    before = resident()
    for _ in range(40):  # 12 MB each, if one were kept
        function(image.copy(), (64, 48), (0, 0, 64, 48), Image.Resampling.BILINEAR)
    assert resident() - before < 100_000_000


@pytest.mark.parametrize(
    "wrong", [{1: 0}, {2: -1}, {3: 2**25}, {5: -1}, {5: 40}, {6: 30}, {7: 0}, {8: 41}, {9: 0}, {9: 4}, {0: None}, {10: None}]
)
def test_nonsense_is_refused_before_memory_is_touched(wrong: dict[int, int | None]) -> None:
    call = ctypes.CDLL(str(compiled.compile_here())).ortserve_resample
    call.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 9, ctypes.c_void_p]
    source, result = np.zeros((50, 60, 4), np.uint8), np.zeros((30, 40, 3), np.uint8)
    arguments: list[int | None] = [source.ctypes.data, 60, 50, 40, 30, 0, 0, 40, 30, 2, result.ctypes.data]
    assert call(*arguments) == 0
    for place, value in wrong.items():
        arguments[place] = value
    assert call(*arguments) == 1
