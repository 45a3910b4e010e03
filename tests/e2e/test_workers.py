"""Several workers are one service: ready together, counted together, and a dead one is missed, replaced and not forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.packages import add_package, picture, write_profile
from tests.serving import Server, until, value

pytestmark = pytest.mark.e2e

WORKERS = 2
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model `colours`."""
    folder = tmp_path_factory.mktemp("home")
    add_package(folder, "colours:1")
    return folder


@dataclass
class Pair:
    """A service of two workers and what `/readyz` answered while it started."""

    server: Server
    while_starting: list[tuple[int, int]] = field(default_factory=list)  # status, workers that were warm right after


@pytest.fixture(scope="module")
def pair(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The one service of this file, started once."""
    mine = write_profile(tmp_path_factory.mktemp("pair") / "pair.yaml", workers=WORKERS)
    started = Pair(Server(home, env={"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "colours"}))

    def ask() -> bool:
        try:
            status = httpx.get(f"{started.server.base_url}/readyz", timeout=60).status_code
        except httpx.TransportError:
            return False
        started.while_starting.append((status, int(value(started.server, "ortserve_workers"))))
        return status == 200

    try:
        until(lambda: ask() or started.server.process.poll() is not None)
        with started.server:
            yield started
    finally:
        started.server.stop()


def counters(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample that may only rise, less what the scrape itself counts."""
    rising = ("_total", "_count", "_sum", "_bucket")
    return {key: number for key, number in server.metrics().items() if key[0].endswith(rising) and ("endpoint", "/metrics") not in key[1]}


def classify(server: Server, count: int) -> None:
    """Send so many pictures, each over a connection of its own, so that every worker gets some."""

    def one(_: int) -> str:
        answer = httpx.post(f"{server.base_url}/classify", content=picture("green"), headers=PNG, timeout=60)
        label: str = answer.json()["predictions"][0]["label"]
        return label

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(count))) == {"green"}


def test_ready_means_that_all_are_warm(pair: Pair) -> None:
    *before, (status, warm) = pair.while_starting
    assert (status, warm) == (200, WORKERS)
    assert {status for status, _ in before} <= {503}
    assert httpx.get(f"{pair.server.base_url}/readyz").json() == {"status": "ready", "workers": WORKERS}


def test_what_both_workers_count_adds_up_exactly(pair: Pair) -> None:
    before = {name: value(pair.server, name) for name in ("ortserve_decode_duration_seconds_count", "ortserve_batch_size_rows_sum")}
    answered = value(pair.server, "bentoml_service_request_total", endpoint="/classify", http_response_code="200")
    classify(pair.server, 60)
    assert {name: value(pair.server, name) - count for name, count in before.items()} == dict.fromkeys(before, 60)
    assert value(pair.server, "bentoml_service_request_total", endpoint="/classify", http_response_code="200") - answered == 60
    assert value(pair.server, "ortserve_workers") == WORKERS
    assert value(pair.server, "ortserve_provider_active_workers", provider="CPUExecutionProvider") == WORKERS
    assert value(pair.server, "ortserve_model_info", model="colours") == 1


def test_callers_cannot_make_series(pair: Pair) -> None:
    def provoke(invented: str) -> set[int]:
        base, form = pair.server.base_url, {invented: ("x", b"x", "image/png")}
        with httpx.Client(timeout=60) as client:
            return {
                client.get(f"{base}/{invented}").status_code,
                client.get(f"{base}/models/{invented}").status_code,
                client.request(invented.upper(), f"{base}/classify").status_code,
                client.post(f"{base}/classify", files=form).status_code,
                client.post(f"{base}/classify?{invented}=1", content=picture("red"), headers=PNG).status_code,
                client.post(f"{base}/classify", content=b"x", headers={"content-type": f"image/{invented}"}).status_code,
                client.get(f"{base}/static_content/{invented}").status_code,
            }

    with ThreadPoolExecutor(4) as pool:
        seen = set().union(*pool.map(provoke, [f"known{index}" for index in range(16)]))  # every worker has seen every kind
        series = set(pair.server.metrics())
        again = set().union(*pool.map(provoke, [f"invented{index}" for index in range(40)]))
    assert seen == again
    assert not again & {200, 500, 502, 503}
    assert set(pair.server.metrics()) == series


def test_a_killed_worker_is_missed_replaced_and_not_forgotten(pair: Pair) -> None:
    server = pair.server
    classify(server, 20)
    before = counters(server)
    old = server.workers()
    assert len(old) == WORKERS
    old[0].kill()
    old[0].wait(10)

    answer = httpx.get(f"{server.base_url}/readyz", timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert f"expected {WORKERS} warm workers, 1 are" in answer.json()["error"]["message"]
    during = counters(server)
    assert all(during.get(key, -1) >= number for key, number in before.items())
    for gauge in ("ortserve_workers", "ortserve_provider_active_workers", "ortserve_model_info"):
        assert value(server, gauge) == 1  # the dead one is in no gauge
    classify(server, 5)  # the other one serves on

    until(lambda: httpx.get(f"{server.base_url}/readyz", timeout=60).status_code == 200)
    assert value(server, "ortserve_workers") == WORKERS
    assert len({process.pid for process in server.workers()} & {process.pid for process in old}) == 1
    after = counters(server)
    assert all(after.get(key, -1) >= number for key, number in during.items())
    assert value(server, "ortserve_batch_size_rows_sum") - sum(
        number for (name, _), number in before.items() if name == "ortserve_batch_size_rows_sum"
    ) == 5  # fmt: skip


def test_two_services_of_one_store_count_apart(pair: Pair, home: Path, tmp_path: Path) -> None:
    mine = write_profile(tmp_path / "other.yaml")
    before = counters(pair.server)
    with Server(home, env={"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "colours"}) as other:
        classify(other, 3)
        assert value(other, "ortserve_batch_size_rows_sum") == 3
        assert value(other, "ortserve_workers") == 1
        classify(pair.server, 4)
    rows = ("ortserve_batch_size_rows_sum", frozenset({("model", "colours")}))
    after = counters(pair.server)
    assert after[rows] - before[rows] == 4
    assert all(after.get(key, -1) >= number for key, number in before.items())
    assert value(pair.server, "ortserve_workers") == WORKERS
