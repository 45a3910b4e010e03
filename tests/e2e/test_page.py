"""The Swagger page at `/` in a real browser, without a network: what a newcomer sees first."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.serving import Server

pytestmark = pytest.mark.e2e

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def dom(url: str, profile: Path) -> str:
    """The page's DOM after its scripts ran, in a browser that can reach this machine alone."""
    assert CHROMIUM is not None
    return subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=8000",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_every_path_and_takes_a_file(digits: Server, tmp_path: Path) -> None:
    shown = dom(f"{digits.base_url}/#/Service%20APIs/model_service__classify", tmp_path)
    described = set(httpx.get(f"{digits.base_url}/docs.json").json()["paths"])
    assert {"/classify", "/classify_batch", "/models", "/livez", "/readyz", "/metrics", "/v2/models/{name}/infer"} <= described
    assert set(re.findall(r'data-path="([^"]+)"', shown)) == described
    assert re.search(r'<input[^>]*type="file"', shown)
    assert "Failed to load" not in shown
    assert "Resolver error" not in shown


def test_the_page_names_no_other_host(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert "//" not in page.text.replace("<!DOCTYPE", "")
    for file in re.findall(r'(?:src|href)="\./([^"]+)"', page.text):
        assert client.get(f"/{file}").status_code == 200, file
