"""Requests that nobody wrote: made from the OpenAPI document, and from pictures with some bytes changed. No answer is a server error."""

from __future__ import annotations

import io
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serving import ROOT, Server
from tests.v2 import binary_body, binary_headers, json_body

pytestmark = pytest.mark.e2e

SEED = 20260
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_requests_made_from_the_openapi_document(digits: Server, tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{digits.base_url}/docs.json"),
            *("--max-examples", "100", "--seed", str(SEED), "--checks", CHECKS, "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=540,  # patience: two minutes on two CPUs that do nothing else
        check=False,
    )
    assert result.returncode == 0, result.stdout
    print(result.stdout[-2000:])  # what was counted
    assert "Tested: 24" in result.stdout
    assert int(re.search(r"(\d+) generated", result.stdout.replace(",", "")).group(1)) > 500  # type: ignore[union-attr]


def test_inference_requests_with_changed_bytes(client: httpx.Client) -> None:
    chance = random.Random(SEED)
    pixels = np.random.default_rng(SEED).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    more = {"id": "a", "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}], "parameters": {"timeout": 10**7}}
    binary, length = binary_body({"pixels": pixels}, **more)
    whole = json_body({"pixels": pixels}, **more)
    pieces = [
        b"",
        b"0",
        b"-1",
        b"9" * 18,
        b"9" * 400,
        b"1e400",
        b"NaN",
        b"[" * 3000,
        b'"',
        b"{",
        b"}",
        b",",
        b"null",
        b"\xff",
        b"FP16",
        b"true",
    ]
    statuses: Counter[int] = Counter()
    for turn in range(2000):
        head, tail = (binary[:length], binary[length:]) if turn % 2 else (whole, b"")
        changed = bytearray(head)
        for _ in range(chance.choice((1, 1, 2, 5))):
            # the front and the end are where the names, shapes and sizes stand
            at = chance.choice((chance.randrange(min(150, len(changed) or 1)), max(0, len(changed) - chance.randrange(1, 170))))
            changed[at : at + chance.choice((0, 1, 4, 30))] = chance.choice(pieces)
        said = chance.choice((len(changed), len(changed), len(changed), length, 0, chance.randrange(10**4), chance.randrange(10**20)))
        headers = binary_headers(said) if turn % 2 or not chance.randrange(10) else {}
        tail = tail[: chance.choice((len(tail), len(tail), chance.randrange(len(tail) + 1)))]
        answer = client.post("/v2/models/digits/infer", content=bytes(changed) + tail, headers=headers)
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 400, 413), (answer.text, bytes(changed[:200]))
        assert answer.status_code == 200 or answer.json().keys() == {"error"}
    print(f"requests with changed bytes: {statuses.total()}, by status: {dict(statuses)}")
    assert statuses[200] > 20  # some are still right
    assert statuses[400] > 1000


@pytest.mark.parametrize("how", ["JPEG", "PNG", "WebP", "BMP", "GIF"])
def test_pictures_with_changed_bytes(client: httpx.Client, how: str) -> None:
    chance = random.Random(SEED)
    buffer = io.BytesIO()
    Image.open(ROOT / "examples" / "seven.png").convert("RGB").resize((48, 48)).save(buffer, how)
    picture = buffer.getvalue()
    for _ in range(150):
        changed = bytearray(picture)
        for _ in range(chance.choice((1, 2, 8, 64))):
            changed[chance.randrange(min(len(changed), chance.choice((40, 400, 10**6))))] = chance.randrange(256)
        answer = client.post("/classify", files={"image": bytes(changed[: chance.choice((len(changed), chance.randrange(len(changed))))])})
        assert answer.status_code in (200, 400, 413, 415), (answer.text, bytes(changed))
