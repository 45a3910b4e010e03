"""Of a JPEG only the wanted part is decoded, with Pillow's pixels; what Pillow would refuse, or read in its own way, is left to it."""

from __future__ import annotations

import ctypes
import io
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ortserve import compiled, images, jpeg
from ortserve.errors import InvalidImage, RequestError
from ortserve.manifest import Preprocessing
from ortserve.profile import Limits
from ortserve.resample import Box, bordered

FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
LIMITS = Limits()
Asked = tuple[bytes, int, tuple[int, int], tuple[int, int], Box, Image.Resampling]  # what `jpeg.job` is asked
HOW = Preprocessing(mode="crop", height=56, width=56, resize_size=64, mean=(0, 0, 0), std=(1, 1, 1))


def smooth(width: int, height: int) -> Image.Image:
    """Colours that differ from block to block, and within them: all that upsampling and smoothing look at."""
    noise = np.random.default_rng(width * 65536 + height).integers(0, 256, (-(-height // 5), -(-width // 5), 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, orientation: int = 1, many: int = 0, **options: object) -> bytes:
    """With `many` entries of Exif that say nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.update(dict.fromkeys(range(0xC000, 0xC000 + many), 1))
    file = io.BytesIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ImageFile, "MAXBLOCK", 2**22)  # Pillow cannot write noise of the best quality through a smaller buffer
        picture.save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


def resized(*asked: Any) -> NDArray[np.uint8] | None:
    """What becomes of that, the box's border included, or None."""
    wanted = jpeg.job(*asked)
    pixels = None if wanted is None else jpeg.resized(wanted)
    return None if wanted is None or pixels is None else bordered(pixels, wanted.within, asked[4])


def by_pillow(data: bytes, size: tuple[int, int], box: Box, resampling: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(images.decode(data, LIMITS).resize(size, resampling).crop(box))


def without_last_scans(data: bytes, scans: int) -> bytes:
    """A progressive JPEG that ends, properly, before its last scans: decoders smooth what these would have refined."""
    starts = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    kept = max(1, len(starts) - scans)
    return data if kept == len(starts) else data[: starts[kept]] + b"\xff\xd9"


@st.composite
def parts(draw: st.DrawFn) -> Asked:
    """A JPEG, its orientation, its upright size, a size, a box inside that, a filter."""
    side = st.integers(1, 300) | st.integers(1, 40) | st.sampled_from((1, 2, 8, 16, 17, 32, 33, 224, 256))
    picture = smooth(draw(side), draw(side))
    if draw(st.booleans()) and draw(st.booleans()):
        picture = picture.convert("L")
    orientation = draw(st.sampled_from((1, 1, 1, 2, 3, 4, 5, 6, 7, 8)))
    options: dict[str, object] = {"quality": draw(st.sampled_from((30, 75, 90, 100))), "progressive": draw(st.booleans())}
    if picture.mode == "RGB":
        options |= {"keep_rgb": draw(st.sampled_from((False, False, False, True))), "subsampling": draw(st.sampled_from((0, 1, 2)))}
        if options["keep_rgb"]:
            options["subsampling"] = 0
    if draw(st.booleans()):
        options["restart_marker_blocks"] = draw(st.integers(1, 9))
    data = encoded(picture, orientation, **options)
    if options["progressive"]:
        data = without_last_scans(data, draw(st.integers(0, 12)))
    upright = picture.size[::-1] if orientation >= 5 else picture.size
    size = draw(st.tuples(side, side) | st.just(upright))
    left, top = (draw(st.integers(0, length - 1)) for length in size)
    box = (left, top, draw(st.integers(left + 1, size[0])), draw(st.integers(top + 1, size[1])))
    return data, orientation, upright, size, box, draw(st.sampled_from(FILTERS))


def case(picture: Image.Image, size: tuple[int, int], box: Box, orientation: int = 1, **options: object) -> Asked:
    upright = picture.size[::-1] if orientation >= 5 else picture.size
    return encoded(picture, orientation, **options), orientation, upright, size, box, Image.Resampling.BILINEAR


@settings(max_examples=1500, deadline=None)
@given(parts())
@example(case(smooth(500, 375), (341, 256), (58, 16, 282, 240)))
@example(case(smooth(500, 375), (256, 341), (16, 58, 240, 282), 6))
@example(case(smooth(300, 300), (300, 300), (140, 140, 141, 141), progressive=True))
@example(case(smooth(60, 290), (50, 40), (10, 10, 30, 30)))  # down first
def test_every_pixel_is_pillows(part: Asked) -> None:
    data, _, _, size, box, resampling = part
    pixels = resized(*part)
    assert pixels is not None
    assert np.array_equal(pixels, by_pillow(data, size, box, resampling))


@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (4, 2), (2, 4), (3, 1)])
def test_every_way_to_store_chroma(factors: tuple[int, int]) -> None:
    """Pillow writes three of them. Any other is made of a grey picture's blocks: so many of Y, then one of each of the others."""
    across, down = factors
    columns, rows = 5, 4  # of what is stored together
    grey = encoded(smooth(8 * (across * down + 2) * columns, 8 * rows).convert("L"), quality=80)
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    width, height = 8 * across * columns, 8 * down * rows
    new_frame = struct.pack(">HHBHHB", 0xFFC0, 17, 8, height, width, 3) + bytes((1, across << 4 | down, 0, 2, 0x11, 0, 3, 0x11, 0))
    new_scan = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00"
    data = grey[:frame] + new_frame + grey[frame + 13 : scan] + new_scan + grey[scan + 10 :]
    for size in ((width, height), (100, 90)):
        for start, end in ((0, 0.4), (0.35, 0.6), (0.7, 1)):
            box = (int(size[0] * start), int(size[1] * start), int(size[0] * end), int(size[1] * end))
            pixels = resized(data, 1, (width, height), size, box, Image.Resampling.BICUBIC)
            assert pixels is not None
            assert np.array_equal(pixels, by_pillow(data, size, box, Image.Resampling.BICUBIC))


def test_a_box_that_reaches_outside_is_black_there() -> None:
    data = encoded(smooth(90, 70))
    for box in ((-7, -9, 60, 70), (20, 12, 50, 40), (31, 23, 40, 40), (10, -3, 20, 30)):
        pixels = resized(data, 1, (90, 70), (31, 23), box, Image.Resampling.BICUBIC)
        expected = by_pillow(data, (31, 23), box, Image.Resampling.BICUBIC)
        if box[0] >= 31:
            assert pixels is None  # nothing of the picture: nothing to decode it for
        else:
            assert pixels is not None
            assert np.array_equal(pixels, expected)
            assert (pixels.flags.c_contiguous, pixels.flags.writeable) == (True, False)


@pytest.mark.parametrize("mode", ["crop", "stretch", "pad", "letterbox"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("orientation", [1, 8])
def test_load_is_preprocess_of_decode(mode: str, interpolation: str, orientation: int) -> None:
    how = HOW.model_copy(update={"mode": mode, "interpolation": interpolation, "resize_size": 64 if mode == "crop" else None})
    data = encoded(smooth(130, 90), orientation)
    assert np.array_equal(images.load(data, how, LIMITS, decoder="exact"), images.preprocess(images.decode(data, LIMITS), how))


def test_small_jpegs_are_for_the_threads_that_want_no_interpreter() -> None:
    picture = smooth(130, 90)
    part = images.small_jpeg(encoded(picture), HOW, LIMITS)
    assert part is not None
    pixels = jpeg.resized(part.job)
    assert pixels is not None
    assert np.array_equal(part.finished(pixels), images.load(encoded(picture), HOW, LIMITS, decoder="exact"))
    png = io.BytesIO()
    picture.save(png, "PNG")
    others = {
        "several scans": encoded(picture, progressive=True),
        "bits that take long": bytes(encoded(picture)).replace(b"\xff\xc0", b"\xff\xc9"),
        "many segments": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 40 + encoded(picture)[2:],
        "many entries of Exif": encoded(picture, many=60),
        "many bytes": encoded(smooth(1200, 1200), quality=95),
        "many pixels": encoded(Image.new("RGB", (1600, 1000))),
        "another format": png.getvalue(),
        "rubbish": b"rubbish",
        "nothing": b"",
    }
    assert {name: images.small_jpeg(data, HOW, LIMITS) for name, data in others.items()} == dict.fromkeys(others)
    with pytest.raises(InvalidImage):
        images.small_jpeg(encoded(picture)[:200], HOW, LIMITS)


# --- what is Pillow's to decode ---------------------------------------------------------------------------------------


def tried(data: bytes) -> NDArray[np.uint8] | None:
    header = images.inspect(data, LIMITS)
    framing = images.frame(header.upright_size, HOW)
    return resized(header.data, header.orientation, header.upright_size, framing.size, framing.box, Image.Resampling.BILINEAR)


def outcome(load: Callable[[], NDArray[np.uint8]]) -> bytes | tuple[type[RequestError], str]:
    try:
        return load().tobytes()
    except RequestError as error:
        return type(error), str(error)


def test_inks_are_pillows() -> None:
    file = io.BytesIO()
    smooth(90, 70).convert("CMYK").save(file, "JPEG")
    assert tried(file.getvalue()) is None
    assert np.array_equal(
        images.load(file.getvalue(), HOW, LIMITS, decoder="exact"), images.preprocess(images.decode(file.getvalue(), LIMITS), HOW)
    )


@pytest.mark.parametrize("progressive", [False, True])
def test_a_picture_that_is_cut_off_anywhere_is_refused_below_the_crop_too(progressive: bool) -> None:
    data = encoded(smooth(90, 200), progressive=progressive)  # of whose height the crop shows a third
    scan = data.rindex(b"\xff\xda") + 14
    for length in (*range(scan, len(data) - 4, 97), len(data) - 4):
        assert tried(data[:length]) is None
        with pytest.raises(InvalidImage):
            images.load(data[:length], HOW, LIMITS, decoder="exact")
    assert tried(data) is not None
    ended = data[: len(data) - 60] + b"\xff\xd9"  # a proper end, too early
    if not progressive:
        assert tried(ended) is None


@pytest.mark.parametrize("length", range(2, 16))
@pytest.mark.parametrize("marker", [b"\xff\xe0", b"\xff\xee"])
def test_a_segment_that_is_too_short_to_say_anything_is_passed_over(marker: bytes, length: int) -> None:
    """Pillow would stumble over some of them, libjpeg over none."""
    data = encoded(smooth(90, 70))
    said = (b"JFIF\0" if marker == b"\xff\xe0" else b"Adobe") + bytes(20)
    short = data[:2] + marker + struct.pack(">H", length) + said[: length - 2] + data[2:]
    expected = images.load(data, HOW, LIMITS, decoder="exact")
    assert np.array_equal(images.load(short, HOW, LIMITS, decoder="exact"), expected)
    assert np.array_equal(images.preprocess(images.decode(short, LIMITS), HOW), expected)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_picture_ends_as_it_does_with_pillow(drawn: st.DataObject) -> None:
    data = bytearray(drawn.draw(st.sampled_from(DAMAGED)))
    for position, value in drawn.draw(st.lists(st.tuples(st.integers(2, len(data) - 1), st.integers(0, 255)), min_size=1, max_size=6)):
        data[position] = value
    limits = Limits(max_image_pixels=200_000)
    ours = outcome(lambda: images.load(bytes(data), HOW, limits, decoder="exact"))
    pillows = outcome(lambda: images.preprocess(images.decode(bytes(data), limits), HOW))
    if isinstance(pillows, bytes) or isinstance(ours, bytes):
        assert ours == pillows
    else:
        assert ours[0] == pillows[0]


DAMAGED = [encoded(smooth(90, 70), progressive=progressive, subsampling=2) for progressive in (False, True)]


def test_many_threads_at_once() -> None:
    work = [case(smooth(200 + i, 150 + 3 * i), (90, 70), (i, i, 80, 60), 1 + i % 8, progressive=i % 3 == 0) for i in range(16)]
    work += [(b"\xff\xd8" + data[200:], *rest) for data, *rest in work[:4]]  # type: ignore[misc]  # rubbish among them
    expected = [resized(*part) for part in work]
    assert [pixels is None for pixels in expected] == [False] * 16 + [True] * 4
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for pixels, wanted in zip(pool.map(lambda part: resized(*part), work), expected, strict=True):
                assert (pixels is None) == (wanted is None)
                assert wanted is None or np.array_equal(pixels, wanted)  # type: ignore[arg-type]


def test_nothing_is_kept() -> None:
    whole = encoded(smooth(1600, 1200), 6, quality=90)
    progressive = encoded(smooth(1600, 1200), quality=90, progressive=True)
    sizes = ((1200, 1600), (1600, 1200))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    def several() -> None:
        for _ in range(10):  # 8 MB each, if one were kept
            for data, size, orientation in ((whole, sizes[0], 6), (progressive, sizes[1], 1)):
                assert resized(data, orientation, size, (64, 48), (0, 0, 64, 48), Image.Resampling.BILINEAR) is not None
                assert resized(data[: len(data) // 2], orientation, size, (64, 48), (0, 0, 64, 48), Image.Resampling.BILINEAR) is None

    several()
    before = resident()
    several()
    assert resident() - before < 30_000_000


@pytest.mark.parametrize(
    "wrong", [{0: None}, {2: 0}, {2: 9}, {3: 0}, {4: 2**25}, {5: -1}, {7: -1}, {7: 40}, {8: 30}, {9: 0}, {11: 4}, {12: None}]
)
def test_nonsense_is_refused_before_memory_is_touched(wrong: dict[int, int | None]) -> None:
    assert jpeg.way().name == "compiled"
    call = ctypes.CDLL(str(compiled.compiled_file())).ortserve_resample_jpeg
    call.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 10, ctypes.c_void_p]
    data, result = encoded(smooth(60, 50)), np.zeros((30, 40, 3), np.uint8)
    arguments: list[object] = [data, len(data), 1, 60, 50, 40, 30, 0, 0, 40, 30, 2, result.ctypes.data]
    assert call(*arguments) == 0
    for place, value in wrong.items():
        arguments[place] = value
    assert call(*arguments) == 1


@pytest.mark.parametrize("said", [(61, 50), (60, 49), (50, 60)])
def test_a_size_that_is_not_the_pictures_is_declined(said: tuple[int, int]) -> None:
    assert resized(encoded(smooth(60, 50)), 1, said, (40, 30), (0, 0, 40, 30), Image.Resampling.BILINEAR) is None
