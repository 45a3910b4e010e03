"""Pictures that are none, half of one, of another kind or too large."""

from __future__ import annotations

import io
import re
import struct
import zlib

import httpx
import pytest
from PIL import Image

from tests.refusals import MIB, SEVEN, peak_bytes, refused
from tests.serving import Server

pytestmark = pytest.mark.e2e


def png_header(width: int, height: int) -> bytes:
    """A whole PNG of a few bytes that says it is that large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def encoded(how: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 20, 30)).save(buffer, how)
    return buffer.getvalue()


NOT_WHOLE = {
    "empty": b"",
    "text": b"not a picture",
    "zeros": bytes(10_000),
    "random": bytes(range(256)) * 40,
    "html": b"<html><body>404</body></html>",
    "script": b"<script>alert(1)</script>",
    "PNG cut": SEVEN[: len(SEVEN) // 2],
    "PNG magic alone": SEVEN[:8],
    "PNG with a flipped byte": SEVEN[:5000] + bytes([SEVEN[5000] ^ 0xFF]) + SEVEN[5001:],
    "JPEG magic alone": b"\xff\xd8\xff",
    **{f"{how} cut": encoded(how)[:-40] for how in ("JPEG", "WebP", "BMP")},
    "GIF cut": encoded("GIF")[:30],
}
OTHER_KINDS = {
    "TIFF": encoded("TIFF"),
    "PDF": b"%PDF-1.7\n" + bytes(100),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "ICO": encoded("ICO"),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_no_picture_or_half_of_one_is_400(client: httpx.Client, strict: Server, name: str) -> None:
    answer = client.post("/classify", files={"image": NOT_WHOLE[name]}, headers={"x-request-id": f"bad-{zlib.crc32(name.encode())}"})
    refused(answer, 400, "invalid_image")
    assert f"[{answer.headers['x-request-id']}] /classify: 400 invalid_image" in strict.log()
    refused(client.post("/classify", content=NOT_WHOLE[name], headers={"content-type": "image/png"}), 400, "invalid_image")


def test_what_the_decoder_said_is_in_the_log_under_the_request_id(client: httpx.Client, strict: Server) -> None:
    answer = client.post("/classify", files={"image": NOT_WHOLE["JPEG cut"]}, headers={"x-request-id": "why-it-failed"})
    refused(answer, 400, "invalid_image")
    line = next(line for line in strict.log().splitlines() if "[why-it-failed]" in line)
    assert re.search(r"\((OSError|SyntaxError|ValueError): .+\)$", line), line


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_another_kind_of_picture_is_415(client: httpx.Client, name: str) -> None:
    refused(client.post("/classify", files={"image": OTHER_KINDS[name]}), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "picture",
    [
        png_header(50_000, 50_000),
        png_header(2**31 - 1, 2**31 - 1),
        png_header(1001, 1000),
        b"GIF89a" + struct.pack("<HHB", 65535, 65535, 0) + b"\0\0," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;",
        b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 50_000, 50_000, 1, 24, 0) + bytes(24),
    ],
    ids=["png", "png at its limit", "png just over", "gif", "bmp"],
)
def test_too_many_pixels_are_413_by_the_header_alone(client: httpx.Client, strict: Server, picture: bytes) -> None:
    memory = peak_bytes(strict)
    assert "1000000 pixels" in refused(client.post("/classify", files={"image": picture}), 413, "image_too_large")
    assert peak_bytes(strict) - memory < 64 * MIB  # 2.5 gigapixels would be 7.5 GB
