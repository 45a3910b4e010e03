"""Requests that nobody wrote: made from the OpenAPI document, and from pictures with some bytes changed. No answer is a server error."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.serving import ROOT, Server

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
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "Tested: 7" in result.stdout


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
