"""Hostile bytes end in a picture or in one of our errors, before they cost anything, and the error tells nothing of the inside."""

from __future__ import annotations

import gc
import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ortserve import images
from ortserve.errors import ImageTooLarge, InvalidImage, PayloadTooLarge, RequestError, UnsupportedMediaType
from ortserve.image_headers import MAX_JPEG_SCANS, inspect
from ortserve.profile import Limits

LIMITS = Limits()
INSIDE = re.compile(r"PIL|[Pp]illow|zlib|libjpeg|Traceback|\.py|0x[0-9a-f]{4}|/")


def encoded(format: str, **options: Any) -> bytes:
    """A small noisy picture in that format, 31 x 23."""
    buffer = io.BytesIO()
    source = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    Image.fromarray(source).save(buffer, format, **options)
    return buffer.getvalue()


PICTURES = {
    "jpeg": encoded("JPEG"),
    "progressive jpeg": encoded("JPEG", progressive=True),
    "png": encoded("PNG"),
    "webp": encoded("WEBP"),
    "lossless webp": encoded("WEBP", lossless=True),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
}


def attempt(data: bytes | bytearray, limits: Limits = LIMITS) -> Image.Image | RequestError:
    """What `data` ends in; any exception but our own passes through, and our own tells nothing of the inside."""
    try:
        return images.decode(data, limits)
    except RequestError as error:
        return clean(error)


def clean(error: RequestError) -> RequestError:
    """The error, its message checked."""
    assert not INSIDE.search(str(error)), str(error)
    return error


def refused(data: bytes, limits: Limits = LIMITS) -> RequestError:
    """The error that `data` must end in."""
    with pytest.raises(RequestError) as caught:
        images.decode(data, limits)
    return clean(caught.value)


# --- damaged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_cut_off_is_refused(name: str) -> None:
    data = PICTURES[name]
    whole = np.asarray(images.decode(data, LIMITS))
    for length in [*range(0, len(data) - 10, 10), *range(len(data) - 10, len(data))]:
        result = attempt(data[:length])
        if isinstance(result, Image.Image):  # what was cut held no pixels: a BMP's padding, a GIF's end mark
            assert len(data) - length <= 3
            assert np.array_equal(np.asarray(result), whole)
        else:
            assert isinstance(result, InvalidImage)


@pytest.mark.parametrize("name", PICTURES)
@settings(max_examples=150, deadline=None)
@given(flips=st.data())
def test_a_damaged_picture_is_a_picture_or_one_of_our_errors(name: str, flips: st.DataObject) -> None:
    data = bytearray(PICTURES[name])
    for position, value in flips.draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), min_size=1, max_size=8)):
        data[position] = value
    result = attempt(data, Limits(max_image_pixels=1_000_000))
    if isinstance(result, Image.Image):
        assert result.mode == "RGB"
        assert result.width * result.height <= 1_000_000


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from([b"", *(data[:n] for data in PICTURES.values() for n in (3, 8, 16, 30))]), rest=st.binary(max_size=200))
def test_rubbish_is_one_of_our_errors(start: bytes, rest: bytes) -> None:
    attempt(start + rest, Limits(max_image_pixels=1_000_000))


# --- not ours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["TIFF", "ICO", "PPM", "JPEG2000", "AVIF", "DDS", "PDF"])
def test_a_picture_of_another_format_is_named(format: str) -> None:
    error = refused(encoded(format))
    assert isinstance(error, UnsupportedMediaType)
    assert "convert the picture first" in str(error)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8\xff", b"hello", b"<html>", b"http://example.com/a.png", bytes(99), b"RIFF\0\0\0\0WAVEfmt "]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert isinstance(refused(data), InvalidImage)


def test_a_compressed_bmp_is_refused_because_it_is_unpacked_byte_by_byte() -> None:
    data = bytearray(encoded("BMP"))
    data[30] = 1
    assert isinstance(refused(bytes(data)), UnsupportedMediaType)


# --- too large -------------------------------------------------------------------------------------------------------


def chunk(name: bytes, payload: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """An RGB PNG that claims that size and holds those chunks."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + b"".join(chunks)
        + chunk(b"IEND", b"")
    )


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int]) -> bytes:
    """A GIF with that screen and a first frame at (x, y) of (width, height)."""
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0, 0, 0) + b"," + struct.pack("<HHHHB", *frame, 0) + b"\x02\x02\x44\x01\x00;"


def webp(kind: bytes, payload: bytes) -> bytes:
    """A WebP of one chunk."""
    body = b"WEBP" + kind + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


HUGE = {
    "png": png(50_000, 50_000, chunk(b"IDAT", zlib.compress(bytes(100_000)))),
    "png, widest": png(2**31 - 1, 1, chunk(b"IDAT", b"")),
    "gif screen": gif((65_535, 65_535), (0, 0, 1, 1)),
    "gif frame": gif((1, 1), (0, 0, 65_535, 65_535)),
    "gif frame that lies far out": gif((1, 1), (65_535, 65_535, 1, 1)),
    "webp VP8X": webp(b"VP8X", struct.pack("<I", 0x02) + b"\xff\xff\x3f\xff\xff\x3f"),
    "webp VP8L": webp(b"VP8L", b"\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + bytes(30)),
    "webp VP8": webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383) + bytes(30)),
    "bmp": b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 50_000, -50_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "bmp, old": b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 65_535, 65_535, 1, 24),
    "jpeg": PICTURES["jpeg"].replace(struct.pack(">HH", 23, 31), struct.pack(">HH", 65_500, 65_500)),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_small_file_that_claims_a_huge_picture_is_refused_by_its_header(name: str) -> None:
    assert len(HUGE[name]) < 3_000
    error = refused(HUGE[name])
    assert isinstance(error, ImageTooLarge)
    assert str(LIMITS.max_image_pixels) in str(error)


def test_the_pixel_limit_is_exact() -> None:
    for data in PICTURES.values():
        assert images.decode(data, Limits(max_image_pixels=31 * 23)).size == (31, 23)
        assert isinstance(refused(data, Limits(max_image_pixels=31 * 23 - 1)), ImageTooLarge)


def test_the_byte_limit_is_exact_and_comes_first() -> None:
    data = HUGE["png"]
    assert isinstance(refused(data, Limits(max_image_bytes=len(data) - 1)), PayloadTooLarge)
    assert isinstance(refused(data, Limits(max_image_bytes=len(data))), ImageTooLarge)


def test_a_picture_without_pixels_is_refused() -> None:
    for data in (png(0, 5, chunk(b"IDAT", b"")), gif((5, 5), (0, 0, 0, 5)), PICTURES["jpeg"].replace(struct.pack(">HH", 23, 31), bytes(4))):
        assert isinstance(refused(data), InvalidImage)


def test_no_limit_of_pillows_own_stands_beside_the_profiles() -> None:
    assert Image.MAX_IMAGE_PIXELS is None


def test_bombs_cost_no_memory() -> None:
    """In a process that may not grow by 200 MB: with the memory gone the error would be another."""
    code = (
        "import resource, sys\n"
        "from tests.unit.test_images_hostile import FLOODS, HUGE, LIMITS\n"
        "from ortserve import images\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)\n"
        "for name, data in {**HUGE, **{name: make() for name, make in FLOODS.items()}}.items():\n"
        "    try:\n"
        "        images.decode(data, LIMITS)\n"
        "        print(name, 'decoded', sep='|')\n"
        "    except Exception as error:\n"
        "        print(name, type(error).__name__, type(error.__cause__).__name__, sep='|')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300, env={**os.environ, "PYTHONPATH": "."}
    )
    outcomes = dict(line.split("|", 1) for line in result.stdout.splitlines())
    assert outcomes == dict.fromkeys(HUGE, "ImageTooLarge|NoneType") | {name: FLOOD_OUTCOMES[name] for name in FLOODS}


# --- floods: a header that takes a decoder in Python minutes ---------------------------------------------------------


def _jpeg_with(inserted: bytes) -> bytes:
    return b"\xff\xd8" + inserted + PICTURES["jpeg"][2:]


def _png_with(inserted: bytes) -> bytes:
    return PICTURES["png"][:33] + inserted + PICTURES["png"][33:]


INFLATES = b"x\0\0" + zlib.compress(bytes(900_000))


def _scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = PICTURES["progressive jpeg"]
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + data[-2:]


FLOODS = {
    "jpeg, empty segments": lambda: _jpeg_with(b"\xff\xe0\0\x02" * 2_000_000),
    "jpeg, fill bytes": lambda: _jpeg_with(b"\xff" * 10_000_000),
    "jpeg, Exif in crumbs": lambda: _jpeg_with((b"\xff\xe1\0\x09Exif\0\0x") * 500_000),
    "jpeg, tables": lambda: _jpeg_with((b"\xff\xdb\xff\xfd" + (b"\0" + bytes([1]) * 64) * 1007 + bytes(65533 - 2 - 65 * 1007)) * 100),
    "jpeg, scans": lambda: _scans(20_000),
    "png, profiles that inflate": lambda: _png_with(chunk(b"iCCP", INFLATES) * 5_000),
    "png, text that inflates": lambda: _png_with(chunk(b"zTXt", INFLATES) * 5_000),
    "png, empty chunks": lambda: _png_with(chunk(b"IDAT", b"") * 500_000),
    "gif, comments": lambda: PICTURES["gif"][:13] + (b"!\xfe" + b"\1x" * 1_000_000 + b"\0") + PICTURES["gif"][13:],
    "gif, extensions": lambda: b"GIF89a\1\0\1\0\0\0\0" + b"!\xf9\0" * 1_000_000 + b",",
    "webp, chunks": lambda: webp(b"VP8X", bytes(10)) + b"abcd\0\0\0\0" * 500_000,
}
FLOOD_OUTCOMES = dict.fromkeys(FLOODS, "InvalidImage|NoneType") | {
    # These are not refused but left out of what the decoder sees.
    "png, profiles that inflate": "decoded",
    "png, text that inflates": "decoded",
}


def test_only_what_decides_pixels_reaches_the_decoder() -> None:
    assert inspect(_png_with(chunk(b"zTXt", INFLATES) + chunk(b"iCCP", INFLATES)), LIMITS).data == inspect(PICTURES["png"], LIMITS).data
    assert inspect(_jpeg_with(b"\xff\xe2\0\x10ICC_PROFILE\0\1\1" + b"\xff\xfe\0\x05abc"), LIMITS).data == PICTURES["jpeg"]
    comment = b"!\xfe\x05hello\0"
    start = 13 + 3 * 256
    assert inspect(PICTURES["gif"][:start] + comment + PICTURES["gif"][start:], LIMITS).data == PICTURES["gif"]


def test_the_limit_on_scans_leaves_what_encoders_write() -> None:
    whole = np.asarray(images.decode(PICTURES["progressive jpeg"], LIMITS))
    assert isinstance(refused(_scans(MAX_JPEG_SCANS + 1)), InvalidImage)
    # Two bytes of a scan's marker in what follows the picture are no scans.
    assert np.array_equal(np.asarray(images.decode(PICTURES["progressive jpeg"] + b"\xff\xda" * 1000, LIMITS)), whole)


# --- nothing is left behind ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_nothing_is_left_behind() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def many() -> None:
        for data in PICTURES.values():
            for length in (len(data), len(data) - 20, 40):
                attempt(data[:length])

    many()
    gc.collect()
    files, memory = len(list(Path("/proc/self/fd").iterdir())), resident_bytes()
    for _ in range(300):
        many()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert resident_bytes() - memory < 8 * 2**20  # one picture of 3 KB lost in each of 6,300 decodings would be 18 MB
