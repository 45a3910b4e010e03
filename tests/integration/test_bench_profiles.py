"""A real server is watched by a real py-spy; skipped, with the reason, where the kernel lets no process look into another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.process import PORT, Served
from benchmarks.profiles import Refused, watched
from benchmarks.stacks import DECODE, PARTS

pytestmark = pytest.mark.integration

SERVER = """
import http.server, io, os, sys, threading
from PIL import Image

buffer = io.BytesIO()
Image.effect_noise((640, 480), 60).convert("RGB").save(buffer, "JPEG")


def decode():
    while True:
        Image.open(buffer).load()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()


threading.Thread(target=decode, daemon=True).start()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_what_a_server_does_is_seen(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVER, PORT]
    with Served(command, ready="/", home=tmp_path, cwd=tmp_path) as served:
        try:
            parts, innermost = watched(served, 1.0)
        except Refused as error:
            pytest.skip(str(error))
    assert list(parts) == list(PARTS)
    assert parts[DECODE] > 0.8 * sum(parts.values()) > 0
    assert next(iter(innermost)).startswith("ImageFile.load (PIL/ImageFile.py")
