"""The load test against the real service: its thresholds set the exit status, its page comes up, every endpoint is asked."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ROOT, Server, free_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(digits_home: Path) -> Iterator[Server]:
    with Server(digits_home) as running:
        yield running


def locust(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "--host", server.base_url, "--headless", "-u", "4", "-r", "4", "-t", "3s", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_run_within_its_thresholds_ends_with_0_and_asked_every_endpoint(server: Server) -> None:
    result = locust(server, "--max-error-rate", "0", "--max-p99-ms", "60000", "--min-rps", "0.1")
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    for name in ("/classify ", "/classify (raw body)", "/classify_batch", "/models", "/readyz"):
        assert name in output


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--min-rps", "1000000", "requests a second, fewer than"), ("--max-p99-ms", "0.001", "p99 is")],
)
def test_a_missed_threshold_ends_with_1_and_says_which(server: Server, option: str, value: str, said: str) -> None:
    result = locust(server, option, value, "--tags", "classify")
    assert result.returncode == 1
    assert said in result.stdout + result.stderr


def test_failed_requests_are_more_than_an_error_rate_of_0(server: Server, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    result = locust(server, "--pictures", str(tmp_path), "--max-error-rate", "0", "--tags", "classify", "batch")
    assert result.returncode == 1
    assert "of the requests failed" in result.stdout + result.stderr


def test_a_folder_without_pictures_is_said_at_once(server: Server, tmp_path: Path) -> None:
    result = locust(server, "--pictures", str(tmp_path))
    assert result.returncode == 2
    assert "found none: name a folder with --pictures" in result.stdout + result.stderr


def test_the_web_page_comes_up(server: Server) -> None:
    port = free_port()
    command = [sys.executable, "-m", "locust", "--host", server.base_url, "--web-port", str(port), "--web-host", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page = ""
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    page = answer.read().decode()
                break
            except OSError:
                time.sleep(0.1)  # polls a foreign process, which has no event to wait for
        assert "max_p99_ms" in page  # our options are in its form
    finally:
        process.terminate()
        process.wait(20)
