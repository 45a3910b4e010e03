"""Every kind of picture becomes upright 8-bit RGB by the rules that `ortserve/images.py` states: golden pixels for each."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ortserve import images
from ortserve.manifest import Preprocessing
from ortserve.profile import Limits

LIMITS = Limits()
Pixels = NDArray[np.uint8]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    """Reproducible random pixels `uint8[height, width, channels]`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    """The picture's bytes as Pillow writes them."""
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name: bytes, payload: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG written by hand, for what Pillow cannot write: any depth and colour type, any chunks before the pixels.

    `rows` holds the packed scanlines without filter bytes.
    """
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[start : start + stride] for start in range(0, len(rows), stride))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(extra) + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")


def pixels(data: bytes) -> Pixels:
    """What the service sees in these bytes."""
    picture = images.decode(data, LIMITS)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def over_white(colour: NDArray[Any], alpha: NDArray[Any]) -> Pixels:
    """`colour[H, W, 3]` laid over white by `alpha[H, W]`, rounded to nearest."""
    a = alpha[..., np.newaxis].astype(int)
    return ((colour.astype(int) * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def grey(values: NDArray[Any]) -> Pixels:
    """`values[H, W]` as `[H, W, 3]`."""
    return np.repeat(values.astype(np.uint8)[..., np.newaxis], 3, axis=2)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_format_gives_the_pixels_that_were_written(format: str, options: dict[str, Any]) -> None:
    source = noise(37, 23)
    assert np.array_equal(pixels(encoded(Image.fromarray(source), format, **options)), source)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True, "quality": 30}])
def test_a_jpeg_gives_the_pixels_that_pillow_reads(options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(noise(61, 47)), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as reference:
        assert np.array_equal(pixels(data), np.asarray(reference))


def test_a_gif_gives_its_first_frame() -> None:
    first, second = (Image.fromarray(np.full((9, 7, 3), colour, np.uint8)) for colour in ((200, 10, 30), (0, 250, 0)))
    data = encoded(first, "GIF", save_all=True, append_images=[second], duration=100, loop=0, comment=b"several" * 100)
    assert np.array_equal(pixels(data), np.asarray(first))


def test_an_animated_webp_gives_its_first_frame() -> None:
    first, second = (Image.fromarray(noise(9, 7, seed=seed)) for seed in (1, 2))
    data = encoded(first, "WEBP", save_all=True, append_images=[second], duration=100, lossless=True)
    assert np.array_equal(pixels(data), np.asarray(first))


def test_an_apng_gives_its_default_picture() -> None:
    frames = [Image.fromarray(noise(9, 7, seed=seed)) for seed in (1, 2, 3)]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert np.array_equal(pixels(data), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken(kind: type) -> None:
    source = noise(8, 8)
    data = encoded(Image.fromarray(source), "PNG")
    assert np.array_equal(np.asarray(images.decode(kind(data), LIMITS)), source)


# --- orientation -----------------------------------------------------------------------------------------------------

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def exif(orientation: int, order: str = "<") -> bytes:
    """An Exif block, as a camera writes it: a tag before, the orientation, a tag after."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(0x0100, 3, 1, 640), (0x0112, 3, 1, orientation), (0x0128, 3, 1, 2)]
    body = b"".join(struct.pack(order + "HHIHH", *entry, 0) for entry in entries)
    return b"Exif\0\0" + mark + struct.pack(order + "IH", 8, len(entries)) + body + b"\0\0\0\0"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})])
def test_exif_orientation_is_applied(format: str, options: dict[str, Any], orientation: int, order: str) -> None:
    source = Image.fromarray(noise(11, 17))
    data = encoded(source, format, exif=exif(orientation, order), **options)
    stored = pixels(encoded(source, format, **options))
    assert np.array_equal(pixels(data), UPRIGHT[orientation](stored))
    with Image.open(io.BytesIO(data)) as reference:
        assert np.array_equal(pixels(data), np.asarray(ImageOps.exif_transpose(reference).convert("RGB")))


@pytest.mark.parametrize(
    "block",
    [
        exif(0),
        exif(9),
        exif(65535),
        exif(6)[:-30],  # cut off before the tag
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",  # its directory lies outside
        b"Exif\0\0XX*\0" + exif(6)[10:],
        exif(6).replace(struct.pack("<HHI", 0x0112, 3, 1), struct.pack("<HHI", 0x0112, 2, 1)),  # text, not a number
    ],
)
def test_an_orientation_that_cannot_be_read_counts_as_none(block: bytes) -> None:
    source = Image.fromarray(noise(11, 17))
    assert np.array_equal(pixels(encoded(source, "JPEG", exif=block)), pixels(encoded(source, "JPEG")))


# --- colour ----------------------------------------------------------------------------------------------------------


def test_cmyk_becomes_rgb_by_the_plain_formula() -> None:
    ink = (200, 30, 90, 60)
    data = encoded(Image.new("CMYK", (32, 32), ink), "JPEG", quality=100)  # Pillow writes it inverted, with Adobe's marker
    expected = [(255 - value) * (255 - ink[3]) / 255 for value in ink[:3]]
    assert np.abs(pixels(data) - np.array(expected)).max() <= 3  # JPEG's own rounding, at quality 100


def test_ycck_becomes_rgb_as_cmyk_does() -> None:
    ink = (200, 110, 90, 60)
    cmyk = encoded(Image.new("CMYK", (32, 32), ink), "JPEG", quality=100)
    marker = cmyk.index(b"Adobe")
    assert cmyk[marker + 11] == 0
    ycck = cmyk[: marker + 11] + b"\x02" + cmyk[marker + 12 :]  # the same stored numbers, now meaning Y, Cb, Cr and K
    y, cb, cr, black = (255 - value for value in ink)
    # Adobe converts (255 - stored) from RGB to YCC, so what comes out of YCC is the ink itself.
    inks = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128))
    expected = [(255 - min(max(value, 0), 255)) * black / 255 for value in inks]
    assert np.abs(pixels(ycck) - np.array(expected)).max() <= 3


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_few_bits_is_spread_over_the_whole_range(depth: int) -> None:
    rows = noise(5, 16 * depth // 8).tobytes()[: 5 * 16 * depth // 8]
    levels = unpacked(rows, depth, 5, 16)
    assert np.array_equal(pixels(png(16, 5, depth, 0, rows)), grey(levels * (255 // (2**depth - 1))))


def test_grey_of_16_bits_keeps_the_upper_byte() -> None:
    values = np.arange(0, 65536, 13, dtype=np.uint16)[:5040].reshape(60, 84)
    assert np.array_equal(pixels(png(84, 60, 16, 0, values.astype(">u2").tobytes())), grey(values >> 8))


def test_colour_of_16_bits_keeps_the_upper_byte() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    assert np.array_equal(pixels(png(7, 9, 16, 2, values.astype(">u2").tobytes())), (values >> 8).astype(np.uint8))


def test_an_icc_profile_is_ignored() -> None:
    source = Image.fromarray(noise(16, 16))
    for format in ("PNG", "JPEG"):
        assert np.array_equal(pixels(encoded(source, format, icc_profile=b"a profile" * 50)), pixels(encoded(source, format)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_is_looked_up(depth: int) -> None:
    palette = noise(1, 2**depth)
    rows = noise(5, 2 * depth, 1).tobytes()
    indices = unpacked(rows, depth, 5, 16)
    assert np.array_equal(pixels(png(16, 5, depth, 3, rows, chunk(b"PLTE", palette.tobytes()))), palette[0][indices])


def test_one_bit_and_palette_bmp() -> None:
    bits = Image.fromarray(noise(9, 13, 1)[..., 0] > 127)
    assert np.array_equal(pixels(encoded(bits, "BMP")), np.asarray(bits.convert("RGB")))
    colours = Image.fromarray(noise(9, 13)).quantize(16)
    assert np.array_equal(pixels(encoded(colours, "BMP")), np.asarray(colours.convert("RGB")))


# --- transparency, over white ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_rgba_is_laid_over_white(format: str, options: dict[str, Any]) -> None:
    source = noise(40, 40, 4)
    assert np.array_equal(pixels(encoded(Image.fromarray(source, "RGBA"), format, **options)), over_white(source[..., :3], source[..., 3]))


def test_grey_with_alpha_is_laid_over_white() -> None:
    source = noise(40, 40, 2)
    assert np.array_equal(pixels(png(40, 40, 8, 4, source.tobytes())), over_white(grey(source[..., 0]), source[..., 1]))


@pytest.mark.parametrize(("colour", "channels"), [(4, 2), (6, 4)])
def test_16_bits_with_alpha_keep_the_upper_bytes(colour: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    upper = (values >> 8).astype(np.uint8)
    rgb = grey(upper[..., 0]) if channels == 2 else upper[..., :3]
    assert np.array_equal(pixels(png(7, 9, 16, colour, values.astype(">u2").tobytes())), over_white(rgb, upper[..., -1]))


@pytest.mark.parametrize("alphas", [bytes([255, 0, 255, 255]), bytes([0, 100, 200, 255]), bytes([7])])
def test_a_palette_with_alphas_is_laid_over_white(alphas: bytes) -> None:
    palette = noise(1, 4)
    indices = np.arange(64).reshape(8, 8) % 4
    data = png(8, 8, 8, 3, indices.astype(np.uint8).tobytes(), chunk(b"PLTE", palette.tobytes()), chunk(b"tRNS", alphas))
    alpha = np.frombuffer(alphas.ljust(4, b"\xff"), np.uint8)
    assert np.array_equal(pixels(data), over_white(palette[0][indices], alpha[indices]))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white(depth: int) -> None:
    key = {1: 0, 2: 2, 4: 9, 8: 77, 16: 0x1234}[depth]
    top = 2**depth
    levels = (np.arange(256).reshape(16, 16) if depth < 16 else np.arange(0x1200, 0x1300).reshape(16, 16)) % top
    data = png(16, 16, depth, 0, packed(levels, depth), chunk(b"tRNS", struct.pack(">H", key)))
    eight = levels >> 8 if depth == 16 else levels * (255 // (top - 1))
    assert np.array_equal(pixels(data), np.where((levels == key)[..., np.newaxis], 255, grey(eight)))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white(depth: int) -> None:
    source = noise(8, 8) // 64 * 64
    key = source[3, 4]
    stored = source if depth == 8 else (source.astype(np.uint16) * 256 + 0x34).astype(">u2")
    transparent = struct.pack(">HHH", *(int(value) if depth == 8 else int(value) * 256 + 0x34 for value in key))
    data = png(8, 8, depth, 2, stored.tobytes(), chunk(b"tRNS", transparent))
    assert np.array_equal(pixels(data), np.where((source == key).all(axis=-1, keepdims=True), 255, source))


def test_a_transparent_gif_is_laid_over_white() -> None:
    picture = Image.fromarray((np.arange(64).reshape(8, 8) % 3).astype(np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]], np.uint8)[np.asarray(picture)]
    assert np.array_equal(pixels(encoded(picture, "GIF", transparency=1)), expected)


# --- load ------------------------------------------------------------------------------------------------------------


def test_load_answers_contiguous_pixels_of_the_size_the_model_takes() -> None:
    how = Preprocessing(mode="crop", height=24, width=32, resize_size=40, mean=(0, 0, 0), std=(1, 1, 1))
    result = images.load(encoded(Image.fromarray(noise(100, 70)), "PNG"), how, LIMITS, decoder="exact")
    assert (result.shape, result.dtype, result.flags.c_contiguous) == ((24, 32, 3), np.uint8, True)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("wanted", "decoded"), [((60, 30), (60, 40)), ((61, 30), (120, 80)), ((20, 20), (30, 20)), ((121, 9), (240, 160))])
def test_draft_shrinks_a_jpeg_but_never_below_what_is_needed(wanted: tuple[int, int], decoded: tuple[int, int], orientation: int) -> None:
    data = encoded(Image.fromarray(noise(160, 240)), "JPEG", exif=exif(orientation))
    turn = -1 if orientation == 6 else 1
    assert images.decode(data, LIMITS, draft_size=wanted[::turn]).size == decoded[::turn]


def test_draft_is_close_to_exact_on_a_smooth_picture_and_leaves_other_formats_alone() -> None:
    smooth = Image.fromarray(noise(6, 8)).resize((800, 600), Image.Resampling.BICUBIC)
    how = Preprocessing(mode="crop", height=112, width=112, resize_size=128, mean=(0, 0, 0), std=(1, 1, 1))
    for format, limit in (("JPEG", 3), ("PNG", 0)):
        data = encoded(smooth, format)
        exact, draft = (images.load(data, how, LIMITS, decoder=decoder).astype(int) for decoder in ("exact", "draft"))
        assert np.abs(exact - draft).max() <= limit


def unpacked(rows: bytes, depth: int, height: int, width: int) -> NDArray[Any]:
    """Samples of `depth` bits, most significant first, as PNG packs them."""
    bits = np.unpackbits(np.frombuffer(rows, np.uint8)).reshape(height, width, depth)
    return bits @ (1 << np.arange(depth)[::-1])


def packed(samples: NDArray[Any], depth: int) -> bytes:
    """The opposite of `unpacked`."""
    return np.packbits((samples[..., np.newaxis] >> np.arange(depth)[::-1] & 1).astype(np.uint8)).tobytes()
