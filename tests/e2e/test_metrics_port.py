"""`/metrics` on a port of its own: that and nothing else there, nothing of it on the service's port, and no worker's death silences it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ortserve.tune.ports import free_port
from tests.packages import picture, write_profile
from tests.serving import Server, until

pytestmark = pytest.mark.e2e

WORKERS = 2


@dataclass
class Apart:
    """A service of two workers whose metrics have a port of their own."""

    server: Server
    port: int

    def get(self, path: str = "/metrics", method: str = "GET") -> httpx.Response:
        """What the metrics' port answers."""
        return httpx.request(method, f"http://127.0.0.1:{self.port}{path}", timeout=60)

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        families = text_string_to_metric_families(self.get().text)
        samples = [sample for family in families for sample in family.samples]
        return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())

    def classify(self, count: int) -> None:
        """Send so many pictures, each over a connection of its own, so that every worker gets some."""

        def one(_: int) -> int:
            headers = {"content-type": "image/png"}
            return httpx.post(f"{self.server.base_url}/classify", content=picture("green"), headers=headers, timeout=60).status_code

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(one, range(count))) == {200}


@pytest.fixture(scope="module")
def apart(digits_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    """The one service of this file."""
    port = free_port()
    mine = write_profile(tmp_path_factory.mktemp("apart") / "mine.yaml", workers=WORKERS, metrics={"port": port, "host": "127.0.0.1"})
    with Server(digits_home, env={"ORTSERVE_PROFILE": mine}) as server:
        yield Apart(server, port)


def test_the_services_port_knows_nothing_of_metrics(apart: Apart) -> None:
    answer = httpx.get(f"{apart.server.base_url}/metrics", timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "/metrics" not in httpx.get(f"{apart.server.base_url}/docs.json", timeout=60).json()["paths"]


def test_what_both_workers_count_adds_up_there(apart: Apart) -> None:
    answer = apart.get()
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    before = apart.value("ortserve_batch_size_rows_sum")
    apart.classify(60)
    assert apart.value("ortserve_batch_size_rows_sum") - before == 60
    assert apart.value("ortserve_workers") == WORKERS
    assert apart.value("ortserve_model_info", model="digits") == 1
    assert apart.value("bentoml_service_request_total", endpoint="/classify", http_response_code="200") >= 60


def test_head_is_answered_without_a_body(apart: Apart) -> None:
    answer = apart.get(method="HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 1000


@pytest.mark.parametrize("path", ["/", "/readyz", "/classify", "/models", "/docs.json", "/metrics/", "/metrics/../models"])
def test_nothing_else_is_there(apart: Apart, path: str) -> None:
    with socket.create_connection(("127.0.0.1", apart.port), timeout=60) as connection:  # httpx would tidy the path
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.0 404 ")
    assert b'{"error":{"code":"not_found"' in answer


@pytest.mark.parametrize(
    "sent", [b"POST /metrics HTTP/1.1\r\ncontent-length: 0\r\n\r\n", b"\x16\x03\x01 no request\r\n\r\n", b"GET\r\n\r\n"]
)
def test_what_is_no_get_is_refused_in_the_one_shape(apart: Apart, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", apart.port), timeout=60) as connection:
        connection.sendall(sent)
        answer = connection.makefile("rb").read()
    assert b'{"error":{"code":"bad_request","message":"expected GET /metrics' in answer


def test_a_scraper_that_stalls_keeps_no_other_waiting(apart: Apart) -> None:
    with socket.create_connection(("127.0.0.1", apart.port), timeout=60) as stalled:
        stalled.sendall(b"GET /metr")
        assert apart.get().status_code == 200


def test_it_answers_although_every_worker_dies(apart: Apart) -> None:
    before = apart.value("ortserve_batch_size_rows_sum")
    old = apart.server.workers()
    assert len(old) == WORKERS
    for process in old:
        process.kill()
    for process in old:
        process.wait(10)
    assert apart.value("ortserve_workers") < WORKERS
    assert apart.value("ortserve_batch_size_rows_sum") == before
    until(lambda: apart.value("ortserve_workers") == WORKERS)
    apart.server.wait_ready()
    apart.classify(4)
    assert apart.value("ortserve_batch_size_rows_sum") == before + 4


def test_a_port_that_is_taken_ends_the_start_with_one_line(digits_home: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        mine = write_profile(tmp_path / "mine.yaml", metrics={"port": port, "host": "127.0.0.1"})
        server = Server(digits_home, env={"ORTSERVE_PROFILE": mine})
        try:
            assert server.wait_exit() == 1
            lines = server.log().splitlines()
        finally:
            server.stop()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: metrics.port {port} cannot be opened on metrics.host 127.0.0.1 (Address already in use): ")
