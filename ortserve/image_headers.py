"""What a picture's header says, read before anything is decoded, and the bytes a decoder may see.

Pillow parses headers in Python and keeps what it finds: a JPEG of five million empty segments, a PNG of twenty thousand colour
profiles that inflate a thousandfold, a GIF of comments one byte long each cost seconds to hours, or gigabytes. So the structure is
walked here once, in a bounded number of steps, and only the parts that decide pixels go on to the decoder.
Sources: ITU-T T.81 (JPEG), Exif 2.32, W3C PNG, GIF89a, RFC 9649 (WebP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import unpack_from
from typing import Literal

from ortserve.errors import ImageTooLarge, InvalidImage, PayloadTooLarge, UnsupportedMediaType
from ortserve.profile import Limits

ImageFormat = Literal["jpeg", "png", "webp", "bmp", "gif"]

# Steps of a walk over one file. Cameras write some dozens of JPEG segments, extended XMP some hundreds; a 20 MB PNG with chunks of 8 KB
# has 2,500; a GIF's comments come in blocks of 255 bytes.
MAX_SEGMENTS = 4_096
MAX_CHUNKS = 65_536
# Tables and frame header of a JPEG together; real ones stay under 4 KB.
MAX_JPEG_TABLES_BYTES = 65_536
# Steps of a walk that nobody is to notice: encoders write some twenty segments, cameras some dozens of Exif entries.
QUICK_SEGMENTS = 32
QUICK_EXIF_ENTRIES = 48
# A progressive JPEG goes over all its blocks once for each scan. Encoders write about ten; those that search for the smallest file, 64.
MAX_JPEG_SCANS = 100

_DAMAGED = "the picture is damaged or cut off: send a whole JPEG, PNG, WebP, BMP or GIF"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_HUFFMAN = frozenset({0xC0, 0xC1})
_SEQUENTIAL = _HUFFMAN | {0xC9}
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})  # Huffman, arithmetic, quantisation, restart interval
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_OTHERS = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    *((0, b"P" + digit + space, "PNM") for digit in (b"1", b"2", b"3", b"4", b"5", b"6", b"7") for space in (b"\n", b" ", b"\r", b"\t")),
)


@dataclass(frozen=True, slots=True)
class Header:
    """A picture that may be decoded."""

    format: ImageFormat
    size: tuple[int, int]  # width, height in pixels as stored, before the orientation is applied
    orientation: int  # Exif's, 1 to 8; 1 where there is none
    data: bytes  # what the decoder gets: the parts that decide pixels
    bounded: bool = False  # a JPEG of one Huffman-coded scan, whose size bounds the time it takes to decode

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) once the orientation is applied."""
        return self.size[::-1] if self.orientation >= 5 else self.size


class TakesLong(Exception):
    """The structure of a picture is not walked through in a moment."""


def inspect(data: bytes | bytearray | memoryview, limits: Limits, *, quick: bool = False) -> Header:
    """The header of the picture in `data`, within the limits.

    Raises PayloadTooLarge over `max_image_bytes`, ImageTooLarge over `max_image_pixels`, UnsupportedMediaType for a picture of another
    format, InvalidImage for what is no picture; rubbish may also raise IndexError or struct.error. With `quick` TakesLong, for all but most
    JPEGs.
    """
    length = memoryview(data).nbytes
    if length > limits.max_image_bytes:
        raise PayloadTooLarge(f"expected a picture of at most {limits.max_image_bytes} bytes, got {length}: send a smaller one")
    data = bytes(data)  # the same object where it is bytes already
    if data.startswith(b"\xff\xd8\xff"):
        header = _jpeg(data, quick)
    elif quick:
        raise TakesLong
    elif data.startswith(_PNG):
        header = _png(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        header = _webp(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        header = _gif(data)
    elif data.startswith(b"BM"):
        header = _bmp(data)
    else:
        raise _unknown(data)
    width, height = header.size
    if width <= 0 or height <= 0:
        raise InvalidImage(f"expected a picture with pixels, got {width} x {height}: {_DAMAGED}")
    if width * height > limits.max_image_pixels:
        raise ImageTooLarge(f"expected at most {limits.max_image_pixels} pixels, got {width} x {height}: send a smaller picture")
    return header


def png_size(data: bytes | bytearray | memoryview) -> tuple[int, int] | None:
    """(width, height) where the first bytes are a PNG's; None where they are not. What follows them is not looked at."""
    start = bytes(memoryview(data)[:24])
    return unpack_from(">II", start, 16) if len(start) == 24 and start.startswith(_PNG) else None


def _unknown(data: bytes) -> UnsupportedMediaType | InvalidImage:
    for offset, magic, name in _OTHERS:
        if data.startswith(magic, offset):
            return UnsupportedMediaType(f"expected JPEG, PNG, WebP, BMP or GIF, got {name}: convert the picture first")
    if not data:
        return InvalidImage("expected a picture, got no bytes: send a JPEG, PNG, WebP, BMP or GIF")
    return InvalidImage("the bytes are not a picture: send a JPEG, PNG, WebP, BMP or GIF")


def _jpeg(data: bytes, quick: bool) -> Header:
    kept = [b"\xff\xd8"]
    kept_bytes = 0
    size: tuple[int, int] | None = None
    components, frame = 0, 0
    orientation = 1
    position = 2
    for _ in range(QUICK_SEGMENTS if quick else MAX_SEGMENTS):
        position = data.index(b"\xff", position)  # bytes between segments are skipped, as decoders do
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        if marker == 0 or marker in _STANDALONE:
            position += 2
            continue
        if marker == 0xDA:
            break
        end = position + 2 + unpack_from(">H", data, position + 2)[0]
        if marker == 0xD9 or end > len(data):
            raise InvalidImage(_DAMAGED)
        if marker in _FRAMES:
            if size is not None:
                raise InvalidImage(_DAMAGED)
            bits, height, width, components = unpack_from(">BHHB", data, position + 4)
            frame = marker
            if bits != 8:
                raise UnsupportedMediaType(f"expected a JPEG of 8 bits per sample, got {bits}: convert the picture first")
            size = (width, height)
        elif marker == 0xE1 and orientation == 1 and data.startswith(b"Exif\0\0", position + 4):
            orientation = exif_orientation(data[position + 10 : end], QUICK_EXIF_ENTRIES if quick else None)
        if (
            marker in _FRAMES
            or marker in _TABLES
            # Not those that are too short to say anything: Pillow would stumble over them, libjpeg passes them over.
            or (marker == 0xE0 and end - position >= 18 and data.startswith(b"JFIF\0", position + 4))
            or (marker == 0xEE and end - position >= 16 and data.startswith(b"Adobe", position + 4))
        ):
            kept.append(data[position:end])
            kept_bytes += end - position
        position = end
    else:
        if quick:
            raise TakesLong
        raise InvalidImage(f"expected a JPEG of at most {MAX_SEGMENTS} segments, got more: save the picture without its metadata")
    if size is None:
        raise InvalidImage(_DAMAGED)
    if kept_bytes > MAX_JPEG_TABLES_BYTES:
        raise InvalidImage(f"expected at most {MAX_JPEG_TABLES_BYTES} bytes of JPEG tables, got {kept_bytes}: save the picture again")
    # A picture whose first scan holds all components of a sequential frame ends with it. In others, trailing data and metadata may hold the
    # two bytes of a scan's marker by chance: only many of them are worth the exact walk.
    one_scan = frame in _SEQUENTIAL and data[position + 4] == components
    if quick and not one_scan:
        raise TakesLong
    if not one_scan and data.count(b"\xff\xda", position) > MAX_JPEG_SCANS and _jpeg_scans(data, position) > MAX_JPEG_SCANS:
        raise InvalidImage(f"expected a JPEG of at most {MAX_JPEG_SCANS} scans, got more: save the picture again")
    return Header("jpeg", size, orientation, b"".join((*kept, data[position:])), one_scan and frame in _HUFFMAN)


def _jpeg_scans(data: bytes, position: int) -> int:
    """Scans from the first one to the end of the picture; stops counting soon after the limit."""
    scans = 0
    for _ in range(MAX_SEGMENTS):
        found = _NEXT_MARKER.search(data, position)
        if found is None or data[found.start() + 1] == 0xD9:
            return scans
        position = found.start()
        scans += data[position + 1] == 0xDA
        if scans > MAX_JPEG_SCANS:
            return scans
        position += 2 + unpack_from(">H", data, position + 2)[0]
    return MAX_SEGMENTS


def _png(data: bytes) -> Header:
    length, name, width, height = unpack_from(">I4sII", data, 8)
    if (length, name) != (13, b"IHDR"):
        raise InvalidImage(_DAMAGED)
    kept: list[bytes] = []
    orientation = 1
    position = run = 8
    seen: set[bytes] = set()
    for _ in range(MAX_CHUNKS):
        length, name = unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise InvalidImage(_DAMAGED)
        if name in _PNG_KEPT and (name == b"IDAT" or name not in seen):
            seen.add(name)
        else:
            if name == b"eXIf" and orientation == 1:
                orientation = exif_orientation(data[position + 8 : end - 4])
            kept.append(data[run:position])
            run = end
        position = end
        if name == b"IEND":
            break
    else:
        raise InvalidImage(f"expected a PNG of at most {MAX_CHUNKS} chunks, got more: save the picture again")
    if b"IDAT" not in seen:
        raise InvalidImage(_DAMAGED)
    return Header("png", (width, height), orientation, b"".join((data[:8], *kept, data[run:position])))


def _gif(data: bytes) -> Header:
    width, height, flags = unpack_from("<HHB", data, 6)
    position = start = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control, extension = b"", 0  # the last graphic control extension; where the extension being walked began, 0 outside of one
    for _ in range(MAX_CHUNKS):
        kind = data[position]
        if extension:  # a sub-block, led by its length; an empty one ends the extension
            position += 1 + kind
            if kind == 0:
                control = data[extension:position] if data[extension + 1] == 0xF9 else control
                extension = 0
        elif kind == 0x21:
            extension = position
            position += 2
        elif kind == 0x2C:
            break
        elif kind == 0x3B:
            raise InvalidImage(_DAMAGED)
        else:  # bytes between blocks are skipped, as decoders do
            position += 1
    else:
        raise InvalidImage(f"expected a GIF of at most {MAX_CHUNKS} blocks before its picture, got more: save the picture again")
    # A frame that reaches beyond its screen makes the screen grow.
    x, y, frame_width, frame_height = unpack_from("<HHHH", data, position + 1)
    if frame_width == 0 or frame_height == 0:
        raise InvalidImage(_DAMAGED)
    return Header("gif", (max(width, x + frame_width), max(height, y + frame_height)), 1, data[:start] + control + data[position:])


def _webp(data: bytes) -> Header:
    kind = data[12:16]
    orientation = 1
    if kind == b"VP8X":
        size = (int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
        position = 12
        for _ in range(MAX_CHUNKS):
            if position + 8 > len(data):
                break
            name, length = unpack_from("<4sI", data, position)
            if name == b"EXIF":
                exif = data[position + 8 : position + 8 + length]
                orientation = exif_orientation(exif.removeprefix(b"Exif\0\0"))
                break
            position += 8 + length + (length & 1)
        else:
            raise InvalidImage(f"expected a WebP of at most {MAX_CHUNKS} chunks, got more: save the picture again")
    elif kind == b"VP8L" and data[20] == 0x2F:
        bits = unpack_from("<I", data, 21)[0]
        size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = unpack_from("<HH", data, 26)
        size = (width & 0x3FFF, height & 0x3FFF)
    else:
        raise InvalidImage(_DAMAGED)
    return Header("webp", size, orientation, data)


def _bmp(data: bytes) -> Header:
    header_bytes = unpack_from("<I", data, 14)[0]
    if header_bytes == 12:
        width, height = unpack_from("<HH", data, 18)
        return Header("bmp", (width, height), 1, data)
    width, height, _, _, compression = unpack_from("<iiHHI", data, 18)
    if compression not in (0, 3):
        # Pillow unpacks run lengths in Python, byte by byte.
        raise UnsupportedMediaType("expected an uncompressed BMP, got a compressed one: send it as PNG")
    return Header("bmp", (width, abs(height)), 1, data)


def exif_orientation(exif: bytes, most: int | None = None) -> int:
    """The orientation in an Exif block (a TIFF header and its first directory), 1 to 8; 1 where there is none that can be read.

    Raises TakesLong where the directory has more than `most` entries.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    directory = unpack_from(order + "I", exif, 4)[0]
    if directory + 2 > len(exif):
        return 1
    entries = unpack_from(order + "H", exif, directory)[0]
    if most is not None and entries > most:
        raise TakesLong
    for index in range(entries):
        entry = directory + 2 + 12 * index
        if entry + 12 > len(exif):
            return 1
        tag, kind, count, value = unpack_from(order + "HHIH", exif, entry)
        if tag == 0x0112:
            return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    return 1
